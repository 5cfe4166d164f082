"""The command line: fast help, cached second runs, clear errors, exit codes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from slmrank.cli.display import json_text, print_table
from slmrank.cli.main import VERBS, cli
from slmrank.cli.score import read_request
from slmrank.client.asked import Asked, ItemText
from slmrank.data.records import Job
from slmrank.errors import DataError, SpecError
from slmrank.pipeline.steps import run
from slmrank.spec.reading import load_spec
from slmrank.table_page import markdown_table

from tests.conftest import ROOT, Control, TinyBundle


def error_of(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ") or "\nError: " in done.stderr
    assert "\nFix: " in done.stderr
    return done.stderr


def changed(tiny: TinyBundle, tmp_path: Path, **changes: Any) -> Path:
    """The tiny spec with other values, beside a copy of its data."""
    values = yaml.safe_load(tiny.spec.read_text())
    for name in ("jobs.jsonl", "pairs.jsonl"):
        shutil.copy2(tiny.spec.parent / name, tmp_path / name)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_help_is_instant_and_lists_every_verb(control: Control) -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = control("--help")
        times.append(time.monotonic() - started)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    assert min(times) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = CliRunner().invoke(cli, [verb, "--help"], prog_name="control")
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"control {verb}" in done.output


def test_the_light_verbs_import_no_torch() -> None:
    code = (
        "import sys, slmrank.cli.score, slmrank.client.client, slmrank.cli.steps, slmrank.repository.generate\n"
        "print([m for m in ('torch', 'transformers', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_verb_needs_torch_to_be_listed_or_explained() -> None:
    """Without it, nine of them ended as a fault of ours, with --help too."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from slmrank.cli.main import VERBS, cli\n"
        "print([cli.get_command(None, one) is not None for one in VERBS])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "False" in done.stdout) == (0, False), done.stderr


def test_the_base_install_asks_for_no_torch() -> None:
    from importlib.metadata import requires

    base = [one for one in requires("slmrank") or [] if "extra ==" not in one]
    names = " ".join(base).lower()
    assert "click" in names
    assert not any(heavy in names for heavy in ("torch", "transformers", "openvino"))


def test_an_unknown_verb_names_the_nearest(control: Control) -> None:
    done = control("sumarize", "x.yaml")
    assert done.returncode == 2
    assert "Did you mean 'summarize'" in done.stderr


def test_an_unknown_spec_key(control: Control, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: x\ndata: {source: onet}\nfinetun: {}\n")
    assert "did you mean 'finetune'" in error_of(control("data", tmp_path / "s.yaml"), 2)


def test_errors_as_json(control: Control, tmp_path: Path) -> None:
    done = control("data", tmp_path / "none.yaml", "--json")
    body = json.loads(done.stdout)["error"]
    assert done.returncode == body["code"] == 2
    assert "cannot read spec" in body["message"]
    assert body["hint"]
    for wrong, kind in ((["sweep", "--bad"], "NoSuchOption"), (["score"], "UsageError")):
        done = control(*wrong, "--json")
        body = json.loads(done.stdout)["error"]
        assert (done.returncode, body["code"], body["kind"]) == (2, 2, kind)
        assert body["hint"] == f"see `control {wrong[0]} --help`"


def test_dry_run_makes_nothing(control: Control, tiny: TinyBundle, tmp_path: Path) -> None:
    done = control("repo", tiny.spec, "--artifacts", tmp_path / "a", "--dry-run", "--json")
    plan = json.loads(done.stdout)["plan"]
    assert [row["kind"] for row in plan][-1] == "repository"
    assert {row["state"] for row in plan} == {"to be made"}
    assert not (tmp_path / "a").exists()
    for verb in ("export", "mine"):
        options = ("--artifacts", tmp_path / "a", "--out", tmp_path / "out", "--dry-run")
        adapters = [f"{one}.lora={{rank: 4}}" for one in ("finetune", "recover")]
        done = control(verb, tiny.spec, *options, *(f"--set={one}" for one in adapters))
        assert "fine-tuning" in done.stdout, done.stderr
        assert not list(tmp_path.iterdir())
    run(tiny.bundle.data, tiny.store)
    forced = ("data", tiny.spec, "--artifacts", tiny.artifacts, "--dry-run", "--json")
    for more, state in (((), "cached"), (("--force",), "to be made")):
        [row] = json.loads(control(*forced, *more).stdout)["plan"]
        assert row["state"] == state


def test_a_result_never_takes_the_place_of_its_own_spec(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    """Tuning a tuned spec would leave a file that extends itself; what it extends, a circle."""
    tuned = tmp_path / "a" / "sweeps" / "tiny-tuned.yaml"
    tuned.parent.mkdir(parents=True)
    tuned.write_text(f"extends: {tiny.spec}\nrepository: {{threads: 1}}\n")
    above = tmp_path / "above.yaml"
    above.write_text(f"extends: {tuned}\n")
    for spec in (tuned, above):
        done = control("tune", spec, "--artifacts", tmp_path / "a", "--dry-run")
        assert "would be written to" in error_of(done, 2)
    copied = tmp_path / "copied.yaml"
    copied.write_text(tuned.read_text())
    done = control("tune", copied, "--artifacts", tmp_path / "a", "--dry-run")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_a_second_run_is_cached(control: Control, tiny: TinyBundle, tiny_repository: Path) -> None:
    started = time.monotonic()
    done = control("repo", tiny.spec, "--artifacts", tiny.artifacts, "--json")
    assert json.loads(done.stdout)["path"] == str(tiny_repository)
    assert "made in" not in done.stderr
    assert done.stderr.count("cached") == 9
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_one_changed_job_is_summarised_alone(
    control: Control, tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    spec = changed(tiny, tmp_path)
    lines = (tmp_path / "jobs.jsonl").read_text().splitlines()
    edited = json.loads(lines[7]) | {"description": "Something else entirely. " * 20}
    (tmp_path / "jobs.jsonl").write_text("\n".join([*lines[:7], json.dumps(edited), *lines[8:]]))
    # What was fitted once stays: a summarizer fitted anew would make other summaries of all jobs.
    fitted = tiny.store.path("summarizer", tiny.bundle.summarizer.key)
    first = ("summarize", tiny.spec, f"--set=summarize.fitted={fitted}")
    assert control(*first, "--artifacts", tiny.artifacts).returncode == 0
    change = (f"--set=summarize.fitted={fitted}", "--artifacts", tiny.artifacts, "--json")
    done = control("summarize", spec, *change)
    figures = json.loads(done.stdout)["figures"]
    assert (figures["computed"], figures["reused"]) == (1, 39)


def test_labels_that_are_not_single_tokens(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    spec = changed(tiny, tmp_path, prompt={"yes": " Absolutely not", "max_item_tokens": 96})
    text = error_of(control("import", spec, "--artifacts", tmp_path / "a"), 4)
    assert "a label must be exactly one" in text
    assert not list((tmp_path / "a" / "base").glob("*"))


def test_invalid_utf8_in_jobs(control: Control, tiny: TinyBundle, tmp_path: Path) -> None:
    spec = changed(tiny, tmp_path)
    with (tmp_path / "jobs.jsonl").open("ab") as stream:
        stream.write(b'{"job_id": "\xff"}\n')
    text = error_of(control("data", spec, "--artifacts", tmp_path / "a"), 3)
    assert "jobs.jsonl:41: not UTF-8" in text


def test_an_artifact_folder_that_is_not_writable(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    text = error_of(control("data", tiny.spec, "--artifacts", tmp_path / "file" / "a"), 5)
    assert "--artifacts" in text


@pytest.mark.long
@pytest.mark.slow
def test_an_engine_outside_the_tolerance_is_refused(
    control: Control, tiny: TinyBundle, tiny_repository: Path, tmp_path: Path
) -> None:
    parity = {"max_mean_abs_dp": 1e-9, "max_abs_dp": 1e-9}
    engine = {"openvino": {"precision": "bfloat16"}, "parity": parity}
    spec = changed(tiny, tmp_path, engine=engine)
    before = set((tiny.artifacts / "engine").iterdir())
    text = error_of(control("build", spec, "--artifacts", tiny.artifacts), 6)
    assert "engine refused on" in text
    assert set((tiny.artifacts / "engine").iterdir()) == before


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_finetune_leaves_no_result_and_resumes(
    tiny: TinyBundle, tiny_repository: Path, tmp_path: Path, control: Control
) -> None:
    finetune = {"steps": 400, "queries_per_step": 2, "items_per_query": 4, "checkpoint_every": 2}
    spec = changed(tiny, tmp_path, finetune=finetune)
    command = [str(Path(sys.executable).parent / "control"), "finetune", str(spec)]
    process = subprocess.Popen([*command, "--artifacts", str(tiny.artifacts)])
    deadline = time.monotonic() + 120
    work = tiny.artifacts / "work"
    while time.monotonic() < deadline and not list(work.glob("finetuned-*/state.pt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = list(work.glob("finetuned-*/state.pt"))
    assert saved
    key = saved[0].parent.name.removeprefix("finetuned-")
    assert tiny.store.find("finetuned", key) is None
    done = control("finetune", spec, "--artifacts", tiny.artifacts, "--json")
    figures = json.loads(done.stdout)["figures"]
    assert figures["resumed_at"] >= 2
    assert len(figures["loss"]) == 400


@pytest.mark.long
@pytest.mark.slow
def test_a_teacher_is_taken_from_the_command_line(
    control: Control, tiny: TinyBundle, tiny_repository: Path
) -> None:
    teacher = tiny.store.path("finetuned", tiny.bundle.finetuned.key) / "checkpoint"
    done = control(
        "finetune",
        tiny.spec,
        f"--set=finetune.teacher={teacher}",
        "--artifacts",
        tiny.artifacts,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"] != tiny.bundle.finetuned.key


def test_the_pruned_model_is_an_ordinary_one(tiny: TinyBundle, tiny_repository: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny.store.path("recovered", tiny.bundle.recovered.key) / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 128)


@pytest.mark.slow
def test_evaluate_prints_every_stage(
    control: Control, tiny: TinyBundle, tiny_repository: Path
) -> None:
    done = control("evaluate", tiny.spec, "--artifacts", tiny.artifacts, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "BM25", "base, zero-shot", "fine-tuned", "pruned, not recovered", "pruned + recovered", "engine",
    ]  # fmt: skip
    assert rows["engine"]["mean_abs_dp"] == pytest.approx(
        rows["pruned + recovered"]["mean_abs_dp"], abs=1e-3
    )
    assert rows["pruned + recovered"]["parameters"] < rows["fine-tuned"]["parameters"]
    assert {row["text"] for row in result["full_text"]} == {"full", "summary"}
    table = control("evaluate", tiny.spec, "--artifacts", tiny.artifacts).stdout
    assert "NDCG@10" in table
    assert "pruned + recovered" in table


@pytest.mark.long
@pytest.mark.triton
def test_score_from_flags_files_and_stdin(
    control: Control, tiny_server: Any, tmp_path: Path
) -> None:
    url = ("--url", tiny_server.url)
    done = control("score", "-q", "night nurse", "-j", "job-0", "-t", "Job: nurse", *url, "--json")
    result = json.loads(done.stdout)
    assert [item["status"] for item in result["items"]] == [0, 0]
    assert result["parts"][0]["served"]["engine"]
    wanted = {item["index"]: item["score"] for item in result["items"]}
    (tmp_path / "in.json").write_text(
        json.dumps({"query": "night nurse", "jobs": ["job-0", {"job_text": "Job: nurse"}]})
    )
    again = json.loads(control("score", "-i", tmp_path / "in.json", *url, "--json").stdout)
    found = {item["index"]: item["score"] for item in again["items"]}
    assert found == pytest.approx(wanted, abs=1e-5)
    table = control(
        "score", "-q", "cook", "-i", "-", "--top", "2", *url, stdin="job-1\njob-4\njob-7\n"
    )
    assert table.returncode == 0
    assert table.stdout.count("job-") == 2


@pytest.mark.triton
def test_a_missing_job_is_listed_and_fails_the_command(control: Control, tiny_server: Any) -> None:
    done = control("score", "-q", "cook", "-j", "job-4", "-j", "gone", "--url", tiny_server.url)
    assert "unknown job" in done.stdout
    assert "1 of 2 jobs were not scored: gone (unknown job)" in error_of(done, 9)


@pytest.mark.long
@pytest.mark.triton
def test_bad_score_input(control: Control, tiny_server: Any) -> None:
    url = ("--url", tiny_server.url)
    assert "query is empty" in error_of(control("score", "-q", " ", "-j", "a", *url), 9)
    for missing, words in (("no query", ["-j", "a"]), ("no jobs", ["-q", "a"])):
        done = control("score", *words, *url)
        assert done.returncode == 2
        assert missing in done.stderr
    body = json.dumps({"query": "x" * 2**20, "jobs": ["job-1"]})
    assert "1048576 bytes" in error_of(control("score", "-i", "-", *url, stdin=body), 9)
    done = control("score", "-q", "a", "-i", "-", *url, stdin=b"job-1\n\xff\n")
    assert "not UTF-8: byte 6 is 0xff" in error_of(done, 3)


@pytest.mark.slow
def test_score_without_a_server(control: Control) -> None:
    done = control("score", "-q", "a", "-j", "b", "--url", "127.0.0.1:1", "--timeout", "1")
    assert "no answer from 127.0.0.1:1" in error_of(done, 9)


def test_unnamed_jobs_are_told_apart() -> None:
    raw = b'{"query": "q", "jobs": [{"title": "a"}, {"title": "b"}]}'
    assert [one.job_id for one in read_request(raw, "x")[1] if isinstance(one, Job)] == ["#1", "#2"]
    with pytest.raises(DataError, match="x: job 2: unknown keys tilte"):
        read_request(raw.replace(b'"title": "b"', b'"tilte": "b"'), "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("spec {tiny} --set base.source=~nobody-here/x", 2, "no such user"),
        ("spec {tiny} --set data.seed='!!timestamp xx'", 2, "is not YAML"),
        ("spec {tiny} --set data.seed=yes", 2, "seed is True, not a number"),
        ("spec {tiny} --set sweep.items=[1,on]", 2, "items is [1, True], not a number"),
        ("status {tiny} --set data.jobs='\"a\\0b\"'", 1, "embedded null byte"),
        ("score -q x -i - <&-", 3, "standard input is closed"),
        ("build {tiny} --device cdua", 2, "none of auto, cpu"),
        ("compress-table {tiny} --methods ''", 2, "names no summarizer"),
        ("depth-table {tiny} --out {tiny}", 2, "cannot write to"),
    ],
)
def test_what_nobody_expected_is_an_error_too(
    tiny: TinyBundle, words: str, code: int, told: str
) -> None:
    program = Path(sys.executable).with_name("control")
    line = f"{program} {words.format(tiny=tiny.spec)} --json"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert told in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr


def test_nobody_who_reads_and_nowhere_to_write(control: Control, tiny: TinyBundle) -> None:
    verb = f"{Path(sys.executable).with_name('control')} spec {tiny.spec}"
    piped = f"{verb} | (exec <&-; sleep 4); echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("141", "")
    for more in ("", " --json"):
        closed = ["bash", "-c", f"{verb}{more} >&-"]
        done = subprocess.run(closed, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "standard output is closed" in done.stderr


def test_an_error_that_nobody_reads_keeps_its_code(control: Control) -> None:
    line = f"{Path(sys.executable).with_name('control')} spec /nowhere.yaml --json > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "/nowhere.yaml" in done.stderr


def test_a_missing_key_does_not_show_what_stands_around_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("data: {source: onet}\nsummarize: {store: 'redis://u:s3cret@h:6379/0'}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("extends: [a]\n", "extends is ['a'], no file"),
        ("name: x\ndata: {source: onet}\nprompt: {yes: ' Y'}\n", "quote the key"),
    ],
)
def test_what_yaml_makes_of_words_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert told in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("raw", "query", "jobs"),
    [
        (b"a\n\n b \n", None, ["a", "b"]),
        (b'{"job_id": "a"}\n{"job_text": "t"}', None, ["a", ItemText(text="t")]),
        (b'{"query": "q", "jobs": ["a"]}', "q", ["a"]),
        (b'{"job_id": "a", "job_text": null}', None, ["a"]),
        ('{"job_text": "a\u2028b"}'.encode(), None, [ItemText(text="a\u2028b")]),
        (b"", None, []),
        (b"\xef\xbb\xbfa\n", None, ["a"]),
        (b'"a"\n"b"\n', None, ["a", "b"]),
        (b'{\n"job_id":\n"a"}', None, ["a"]),
    ],
)
def test_request_formats(raw: bytes, query: str | None, jobs: list[Asked]) -> None:
    assert read_request(raw, "x") == (query, jobs)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"job": "a"}', "x:1: unknown keys job"),
        (b'{"job_id": 5}', "x:1: job_id is 5, not a string"),
        (b'{"query": 5, "jobs": ["a"]}', "query is not a string"),
        (b'a\n{"job_id": ', "x:2: not JSON"),
        (b'{"query": "q", "jobs": "a"}', "jobs is not a list"),
        (b'{"title": ' + b"[" * 100_000, "x:1: not JSON"),
        (b'["a", "b"]', "x:1: a list is not a job"),
        (b'{\n"query": "x"\n}', "x:1: unknown keys query"),
        (b'{"query": "q",\n "jobs": ["a",]\n}', "x: not JSON: .*line 2"),
        (b'{"job_id": "a", "title": "x"\n{"job_id": "b"}', "x:1: not JSON"),
        (
            b'{\n"query": "q",\n"jobs": ["a"],\n}',
            "x: not JSON: .*: line 3 column|x: not JSON: .* line 4",
        ),
    ],
)
def test_broken_requests_are_named(raw: bytes, text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_request(raw, "x")


@pytest.mark.slow
def test_a_teacher_with_another_prompt_is_refused(
    control: Control, tiny: TinyBundle, tiny_repository: Path, make_model: Any
) -> None:
    from slmrank.model.checkpoint import write_ranker
    from slmrank.prompt.template import template_of
    from slmrank.spec.model import PromptSpec

    teacher = make_model("llama")
    other = template_of(PromptSpec(closing="Fit:"))
    write_ranker(teacher, other, max_item_tokens=96, max_query_tokens=96)
    change = f"--set=finetune.teacher={teacher}"
    done = control("finetune", tiny.spec, change, "--artifacts", tiny.artifacts)
    assert "has template" in error_of(done, 4)


@pytest.mark.slow
def test_a_split_without_pairs_is_named(control: Control, tiny: TinyBundle, tmp_path: Path) -> None:
    spec = changed(tiny, tmp_path, evaluate={"split": "dev"})
    lines = (tmp_path / "pairs.jsonl").read_text().replace('"dev"', '"train"')
    (tmp_path / "pairs.jsonl").write_text(lines)
    text = error_of(control("evaluate", spec, "--artifacts", tmp_path / "a"), 3)
    assert "no pairs in split 'dev'" in text


@pytest.mark.slow
def test_a_query_that_is_too_long_is_a_data_error(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    spec = changed(tiny, tmp_path)
    with (tmp_path / "pairs.jsonl").open("a") as stream:
        pair = {"query": "word " * 90, "job_id": "job-1", "grade": 1, "split": "train"}
        stream.write(json.dumps(pair) + "\n")
    text = error_of(control("finetune", spec, "--artifacts", tmp_path / "a"), 3)
    assert "tokens, the limit is" in text


def test_ports_outside_the_range_are_a_usage_error(control: Control, tiny: TinyBundle) -> None:
    done = control("serve", tiny.spec, "--grpc-port", "70000")
    assert done.returncode == 2
    assert "70000" in done.stderr


@pytest.mark.slow
def test_evaluate_plans_as_one_document(control: Control, tiny: TinyBundle, tmp_path: Path) -> None:
    done = control("evaluate", tiny.spec, "--artifacts", tmp_path, "--dry-run", "--json")
    kinds = [row["kind"] for row in json.loads(done.stdout)["plan"]]
    assert kinds.count("scores") == 8
    assert kinds.count("finetuned") == 1


def test_what_is_shown_is_what_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("queries :key:", ["job | id"], [["db:id:7"], ["[b]x[/b]"]])
    shown = capsys.readouterr().out
    assert ":key:" in shown
    assert "db:id:7" in shown
    assert "[b]x[/b]" in shown
    print_table("half \ud83d", ["a\nb"], [["\ud83d"]])
    assert "?" in capsys.readouterr().out
    assert "?" in json_text({"title": "\ud83d"})
    assert markdown_table(["|dp|"], [["a|b"]]) == "| \\|dp\\| |\n|---|\n| a\\|b |"
    assert markdown_table(["a"], [["one\ntwo"]]).endswith("| one two |")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("deploy", "render", "--set", "a.b=1"), "are for a spec"),
        (("deploy", "render", "--check", "--track", "canary"), "are for a spec"),
        (("spec", "--set", "finetune.steps=5"), "--set changes a spec"),
        (("spec", "{tiny}", "--schema", "--set", "finetune.steps=5"), "--set changes a spec"),
        (("tune", "{tiny}", "--target", "trtllm-llmapi", "--axis", "threads=1"), "has no threads"),
        (("watch", "{tiny}", "--from", "bogus:x"), "there is no source of changes 'bogus'"),
        (("compress-search", "{tiny}", "--max-loss", "nan"), "not a finite number"),
        (("serve", "{tiny}", "--start-timeout", "inf"), "not a finite number"),
        (("autoscale", "simulate", "{tiny}"), "is no release"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    control: Control, tiny: TinyBundle, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    given = [word.format(tiny=tiny.spec) for word in words]
    done = control(*given, cwd=tmp_path, environment={"CONTROL_ARTIFACTS": str(tmp_path / "a")})
    assert done.returncode != 0
    assert told in done.stderr
    assert not (tmp_path / "a" / "data").exists()


@pytest.mark.slow
def test_a_check_makes_nothing(control: Control, tiny: TinyBundle, tmp_path: Path) -> None:
    words = ("deploy", "render", tiny.spec, "--check", "--artifacts", tmp_path / "a")
    done = control(*words, "--set", "deploy.scaling.items_per_s=5")
    assert done.returncode == 1
    assert "is not made, so there is nothing to compare with" in done.stderr
    assert not (tmp_path / "a" / "data").exists()


@pytest.mark.slow
def test_what_would_end_in_nothing_is_refused_before_it_is_made(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    none = ("--set", "finetune=null", "--set", "prune=null", "--set", "recover=null")
    done = control("export", tiny.spec, "--out", tmp_path / "x", *none)
    assert "trains nothing" in error_of(done, 2)
    done = control("tune", tiny.spec, "--axis", "max_batch_size=-3", "--dry-run")
    assert "max_batch_size" in error_of(done, 2)
    done = control("vary", tiny.spec, "--vary", "recover.steps=[6]", "--vary", "recover.steps=[9]")
    assert "names recover.steps twice" in error_of(done, 2)
    (tmp_path / "file").write_text("")
    done = control("mine", tiny.spec, "--out", tmp_path / "file")
    assert "name another folder" in error_of(done, 3)


@pytest.mark.slow
def test_a_written_spec_is_the_same_from_another_folder(
    control: Control, tiny: TinyBundle, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: demo.yaml\nfinetune: {adapter: here}\n")
    (tmp_path / "demo.yaml").write_text(tiny.spec.read_text())
    command = [str(Path(sys.executable).parent / "control"), "spec", own.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["finetune"]["adapter"] == str(tmp_path / "here")


@pytest.mark.slow
def test_spec_shows_defaults_and_schema(control: Control, tiny: TinyBundle) -> None:
    shown = yaml.safe_load(control("spec", tiny.spec).stdout)
    assert shown["finetune"]["learning_rate"] > 0
    again = tiny.spec.with_name("shown.json")
    again.write_text(control("spec", tiny.spec, "--json").stdout)
    assert yaml.safe_load(control("spec", again).stdout) == shown
    again.unlink()
    schema = json.loads(control("spec", "--schema").stdout)
    for path in sorted((ROOT / "build").glob("*.yaml")):
        if path.name not in ("compatibility.yaml", "crds.yaml"):
            jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError, match="'data' is a required property"):
        jsonschema.validate({"name": "x"}, schema)
    sizes = schema["$defs"]["PruneSpec"]["properties"]["intermediate_size"]
    assert sizes["description"].startswith("MLP neurons kept per layer")
