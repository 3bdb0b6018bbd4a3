"""The command line and its programs: demo, doctor."""
