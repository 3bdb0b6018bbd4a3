"""The recipe of docs/torch_optim.md for Lightning: manual optimisation, and checkpoints that resume bit for bit."""

import pytest

pytest.importorskip("lightning", reason="lightning is no part of the test environment: docs/torch_optim.md")

import lightning
import torch
from recipes import recipe
from torch import nn

DRAWS = torch.Generator().manual_seed(0)
X = torch.randn(64, 3, generator=DRAWS)
DATA = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.sin(X.sum(1, keepdim=True))), 16)


class Fit(recipe("import lightning")["Fit"]):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.losses = []

    def log(self, name, loss):
        super().log(name, loss)
        self.losses.append(float(loss))


class Automatic(Fit):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])


def trainer(folder, epochs):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **quiet)


@pytest.mark.filterwarnings("ignore")
def test_manual_optimisation(tmp_path):
    whole, part, rest = Fit(), Fit(), Fit()
    run = trainer(tmp_path, 3)
    run.fit(whole, DATA)
    assert run.global_step == 12
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.9**3)
    assert float(run.callback_metrics["loss"]) == pytest.approx(whole.losses[-1])
    twin = Fit()
    opt = twin.configure_optimizers()["optimizer"]
    assert [float(opt.step(batch)) for batch in DATA] == whole.losses[:4]

    begun = trainer(tmp_path, 2)
    begun.fit(part, DATA)
    begun.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, 3).fit(rest, DATA, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert part.losses + rest.losses == whole.losses


@pytest.mark.filterwarnings("ignore")
def test_automatic_optimisation_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="automatic_optimization = False"):
        trainer(tmp_path, 1).fit(Automatic(), DATA)
