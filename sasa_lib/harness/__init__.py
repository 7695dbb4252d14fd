"""Other people's evaluation harnesses, with our judges and a steered model.

`inspect_tasks` and `inspect_model` are for Inspect AI, `lm_eval_model` and the folder
`lm_eval_tasks` for lm-evaluation-harness. What both have in common is in `steered`.
"""
