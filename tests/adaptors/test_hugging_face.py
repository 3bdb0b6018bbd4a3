"""Hugging Face's models, small and with random weights: dicts with labels, masks, checkpointing, LoRA, Trainer."""

import copy

import pytest

pytest.importorskip("transformers", reason="transformers is no part of the test environment: docs/torch_optim.md")

import torch
from linop_gn_torch import optim
from recipes import recipe
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    TrainingArguments,
)

import linop_gn as lg

pytestmark = pytest.mark.filterwarnings("ignore")

DRAWS = torch.Generator().manual_seed(0)
IDS = torch.randint(1, 11, (4, 8), generator=DRAWS)
IDS[:, 1::2] = IDS[:, ::2]
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0


def gpt():
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=16, n_layer=2, n_head=2, **ends))


def bert(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8, "num_hidden_layers": 2}
    return kind(BertConfig(vocab_size=11, num_attention_heads=2, num_labels=3, pad_token_id=0, **sizes))


def batch_for(model):
    labels = IDS.masked_fill(MASK == 0, -100)
    if isinstance(model, BertForMaskedLM):
        labels = labels.masked_fill(torch.arange(8) % 3 != 0, -100)
    if isinstance(model, BertForSequenceClassification):
        labels = torch.tensor([0, 1, 2, 0])
    return {"input_ids": IDS, "attention_mask": MASK, "labels": labels}


MODELS = {
    "gpt2": gpt,
    "bert, masked": lambda: bert(BertForMaskedLM),
    "bert, classes": lambda: bert(BertForSequenceClassification),
}


def params(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_batches_with_labels_are_the_models_own_loss(name):
    model = MODELS[name]().eval()
    batch, twin = batch_for(model), copy.deepcopy(model)
    opt = optim.LevenbergMarquardt(model)
    for _ in range(4):
        own = model(**batch).loss
        torch.testing.assert_close(opt.step(BatchEncoding(batch)), own.detach(), rtol=1e-5, atol=0)
    assert float(model(**batch).loss) < 0.95 * float(twin(**batch).loss)

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["labels"]
    if name == "gpt2":
        targets = torch.cat([targets[:, 1:], torch.full((4, 1), -100)], 1)
    by_hand = lg.Objective(twin, lg.losses.CrossEntropy(ignore_index=-100), (inputs, targets))
    run = lg.minimize(by_hand, twin, batches=4 * [(inputs, targets)])
    assert all(torch.equal(run.params[n], p) for n, p in params(model).items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["SGN", "HessianFree", "KFAC", "GaussNewton", "TrustRegion", "NewtonCG"])
def test_every_class_goes_down(kind, name):
    options = {"HessianFree": {"max_steps": 20}, "NewtonCG": {"max_steps": 20}, "GaussNewton": {"damping": 1e-2}}
    model = MODELS[name]().eval()
    batch, opt = batch_for(model), getattr(optim, kind)(model, **options.get(kind, {}))
    for _ in range(3):
        opt.step(batch)
    assert float(opt.last.value) < 0.99 * float(MODELS[name]().eval()(**batch).loss)


@pytest.mark.parametrize("name", MODELS)
def test_a_closure_of_the_models_loss_and_the_batch_are_one_step(name):
    model = MODELS[name]().double().eval()
    batch, twin = batch_for(model), copy.deepcopy(model)
    optim.TrustRegion(model).step(batch)
    optim.TrustRegion(twin).step(lambda: twin(**batch).loss)
    for n, p in params(model).items():
        torch.testing.assert_close(p, params(twin)[n], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["gpt2", "bert, classes"])
def test_gradient_checkpointing_in_training_mode_with_dropout(name):
    model = MODELS[name]().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch, opt = batch_for(model), optim.LevenbergMarquardt(model)
    losses = [float(opt.step(batch)) for _ in range(8)]
    assert losses[-1] < losses[0]
    with pytest.raises(NotImplementedError, match="checkpointing"):
        optim.TrustRegion(model).step(lambda: model(**batch).loss)
    plain = MODELS[name]().double()
    plain.config.use_cache = False
    for dropout in (m for m in plain.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.0
    again = copy.deepcopy(plain).train()
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for m in (plain.eval(), again):
        optim.LevenbergMarquardt(m, damping=0.1).step(batch)
    for n, p in params(plain).items():
        torch.testing.assert_close(p, params(again)[n], rtol=1e-6, atol=1e-8)


def test_lora_by_a_pattern_of_names():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model = peft.get_peft_model(gpt(), config)
    for p in model.parameters():
        p.requires_grad_(True)
    before, batch = params(model), batch_for(model)
    opt = optim.LevenbergMarquardt(model, params="*lora_*")
    losses = [float(opt.step(batch)) for _ in range(8)]
    assert losses[-1] < losses[0]
    moved = {name for name, p in params(model).items() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_batches_that_were_collected():
    model, twin = gpt().eval(), gpt().eval()
    opt, batch = optim.LevenbergMarquardt(model), batch_for(model)
    opt.collect(batch)
    opt.collect(batch)
    loss = opt.step()
    torch.testing.assert_close(loss, twin(**batch).loss.detach(), rtol=1e-5, atol=0)
    optim.LevenbergMarquardt(twin).step([batch, batch])
    assert all(torch.equal(p, params(twin)[n]) for n, p in params(model).items())


def test_a_loss_that_is_none_of_the_logits_is_refused():
    model = bert(BertForSequenceClassification)
    model.config.problem_type = "multi_label_classification"
    batch = batch_for(model) | {"labels": torch.ones(4, 3)}
    with pytest.raises(ValueError, match="give the optimiser a loss"):
        optim.LevenbergMarquardt(model).step(batch)
    with pytest.raises(ValueError, match="needs 'labels'"):
        optim.LevenbergMarquardt(gpt()).step({"input_ids": IDS})


def test_trainer(tmp_path):
    trainer = recipe("import Trainer")["GaussNewtonTrainer"]

    def run(folder, steps, resume=None, **options):
        quiet = {"report_to": [], "disable_tqdm": True, "logging_steps": 1, "use_cpu": True, "save_steps": 2}
        steady = {"lr_scheduler_type": "constant", "max_steps": steps, "per_device_train_batch_size": 2}
        data = [{"input_ids": row, "labels": row} for row in (*IDS[:2], *IDS[:2])]
        made = trainer(gpt(), TrainingArguments(folder, **quiet, **steady, **options), train_dataset=data)
        made.train(resume_from_checkpoint=resume)
        return made

    whole = run(tmp_path / "whole", 4)
    rest = run(tmp_path / "rest", 4, tmp_path / "whole" / "checkpoint-2")
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), rest.model.parameters(), strict=True))
    assert whole.optimizer.optimizer.steps == 4
    told = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert told[-1] < told[0]
    assert run(tmp_path / "two", 2, gradient_accumulation_steps=2).optimizer.optimizer.steps == 2
