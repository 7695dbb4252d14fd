"""Run both harnesses in one process and keep what they say; `test_harnesses.py` calls it."""

import json
import sys
from functools import partial
from pathlib import Path

import anyio
from inspect_ai import eval as inspect_eval
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import ChatMessageUser, ContentImage, GenerateConfig
from inspect_ai.scorer import SampleScore, Score
from lm_eval.api.instance import Instance

import sasa_lib as sl
from sasa_lib.harness import lm_eval_model
from sasa_lib.harness.inspect_model import SteeredAPI, options_of
from sasa_lib.harness.inspect_tasks import on_perspective

MODEL = "smollm2-135m-instruct"


def of_inspect(log):
    """Status, metrics and completions by prompt of one log."""
    scores = {score.name: {name.split("/")[-1]: m.value for name, m in score.metrics.items()}
              for score in log.results.scores} if log.results else {}  # fmt: skip
    texts = {}
    for sample in log.samples or []:
        texts.setdefault(sample.input[0].text, []).append(sample.output.completion)
    error = log.error.message if log.error else None
    return {"status": log.status, "scores": scores, "texts": texts, "error": error}


def refused(call):
    """What a call says that it does not do."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def lm_eval(folder, name, arguments, *tasks):
    """Results of lm-evaluation-harness's own command."""
    lm_eval_model.main(
        ["run", "--model", "sasa", "--model_args", f"pretrained={MODEL},{arguments}",
         "--tasks", ",".join(tasks), "--metadata", '{"source": "embedded"}', "--limit", "1",
         "--batch_size", "25", "--output_path", str(folder / name), "--log_samples"]
    )  # fmt: skip
    (results,) = (folder / name).rglob("results_*.json")
    texts = {}
    for file in (folder / name).rglob("samples_sasa_realtoxicityprompts_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            texts[sample["doc"]["prompt"]] = sample["resps"][0]
    return {"results": json.loads(results.read_text())["results"], "texts": texts}


def main(folder):
    """Steered by Inspect's command was before; here is what is left."""
    (log,) = list_eval_logs(str(folder / "logs"))
    found = {"inspect steered": of_inspect(read_eval_log(log))}
    (plain,) = inspect_eval(
        "sasa_lib/do_not_answer", model=f"sasa/{MODEL}", model_args={"beta": 0}, limit=2,
        max_tokens=5, log_dir=str(folder / "plain"), display="none",
    )  # fmt: skip
    found["inspect plain"] = of_inspect(plain)
    (broken,) = inspect_eval(
        "sasa_lib/realtoxicityprompts", model=f"sasa/{MODEL}", limit=1, display="none",
        task_args={"source": "embedded", "generations": 1}, model_args={"beta": 0},
        frequency_penalty=1.0, log_dir=str(folder / "broken"),
    )  # fmt: skip
    found["inspect broken"] = of_inspect(broken)
    found["options"] = options_of(
        GenerateConfig(max_tokens=3, temperature=0, top_p=0.9, stop_seqs=["x"])
    )
    api = SteeredAPI(MODEL, beta=0)
    picture = [ChatMessageUser(content=[ContentImage(image="x.png")])]
    for name, messages, config in (
        ("picture", picture, GenerateConfig()),
        ("seed", [ChatMessageUser(content="Hello")], GenerateConfig(seed=5)),
    ):
        asked = partial(anyio.run, api.generate, messages, [], "none", config)
        found[name] = refused(asked)
    judge = sl.load_scorer("minilm")
    under_way = [
        SampleScore(score=Score(value={}, metadata={"toxicity": [0.5] * number}))
        for number in (2, 1)
    ]
    found["under way"] = on_perspective(judge.name, judge.version)(under_way)
    pairs, prompts = "sasa_crows_pairs", "sasa_realtoxicityprompts"
    found["lm-eval plain"] = lm_eval(folder, "plain", "beta=0", pairs)
    found["lm-eval steered"] = lm_eval(folder, "steered", "beta=4", pairs, prompts)
    accepting = lm_eval_model.SteeredLM(MODEL, accept=0.0)
    request = Instance("loglikelihood", {}, ("It is", " late"), 0)
    found["lm-eval accept"] = refused(lambda: accepting.loglikelihood([request]))
    Path(folder, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
