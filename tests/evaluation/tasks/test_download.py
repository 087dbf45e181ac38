"""Downloads of BLURB's files from a local HTTP server; tests/web/test_downloads.py tests misbehaving servers."""

import hashlib
import json
import random
import re
import tomllib

import pytest
from misbehaving_server import Answer, misbehaving_server

from bert_pipeline.cli import main
from bert_pipeline.evaluation.tasks import download
from bert_pipeline.evaluation.tasks.download import Source, download_blurb, load_sources
from bert_pipeline.evaluation.tasks.task import TaskError, find_task
from bert_pipeline.web.connections import DownloadError

CONTENT = random.Random(3).randbytes(300_000)
TYPED = b"Aspirin\tB-Chemical\nhelps\tO\n\nB-12\tB-Chemical\nacid\tI-Chemical\n\n"
PLAIN = b"Aspirin\tB\nhelps\tO\n\nB-12\tB\nacid\tI\n\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site():
    with misbehaving_server() as site:
        yield site


def source(site, path, becomes, content, form="as it is", **more):
    pinned = {"url": site.url(path), "sha256": sha256(content), "num_bytes": len(content), "form": form}
    row = {"terms": "free", "cite": "Us", "page": "https://example.org", "downloads": [pinned | {"becomes": becomes}]}
    return Source.model_validate_json(json.dumps(row | more))


def test_data_sets_are_downloaded_converted_and_found_again(site, tmp_path):
    site.answers = {"/devel.tsv": [Answer(TYPED)], "/train.tsv": [Answer(CONTENT)]}
    sources = {
        "Chem": source(site, "/devel.tsv", {"dev.tsv": sha256(PLAIN)}, TYPED, "tags without types"),
        "Raw": source(site, "/train.tsv", {"train.tsv": sha256(CONTENT)}, CONTENT),
    }
    facts = download_blurb(tmp_path, sources=sources)
    assert [each["state"] for each in facts.values()] == ["fetched", "fetched"]
    assert facts["Chem"]["files"] == {"dev.tsv": sha256(PLAIN)}
    assert (tmp_path / "Chem" / "dev.tsv").read_bytes() == PLAIN
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "Chem/dev.tsv",
        "Raw/train.tsv",
    ]
    (tmp_path / "Raw" / "train.tsv").write_bytes(b"spoilt")
    facts = download_blurb(tmp_path, sources=sources)
    assert [each["state"] for each in facts.values()] == ["found", "fetched"]
    assert site.paths() == ["/devel.tsv", "/train.tsv", "/train.tsv"]


def test_terms_must_be_accepted_before_the_download(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT)]
    sources = {"Own": source(site, "/f", {"dev.tsv": sha256(CONTENT)}, CONTENT, must_accept=True)}
    facts = download_blurb(tmp_path, sources=sources)
    assert facts["Own"]["state"] == "not fetched" and "--accept-terms" in facts["Own"]["why_not"]
    assert not site.requests
    assert download_blurb(tmp_path, ["Own"], accept_terms=True, sources=sources)["Own"]["state"] == "fetched"


def test_a_failed_download_is_reported_after_the_others_are_done(site, tmp_path):
    site.answers["/f"] = [Answer(CONTENT)]
    right = {"dev.tsv": sha256(CONTENT)}
    sources = {
        "Gone": source(site, "/gone", right, CONTENT),
        "Other": source(site, "/f", {"dev.tsv": sha256(b"other")}, CONTENT),
        "Here": source(site, "/f", right, CONTENT),
    }
    with pytest.raises(DownloadError, match=r"Gone: .*404.*; Other: .*although the download is right"):
        download_blurb(tmp_path, sources=sources)
    assert (tmp_path / "Here" / "dev.tsv").read_bytes() == CONTENT
    assert not (tmp_path / "Other" / "dev.tsv").exists()


def test_pubmedqa_is_split_as_its_authors_split_it():
    """500 and ten folds, drawn per answer. For the real questions, the manifest's hashes check it byte for byte."""
    answers = ["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110
    random.Random(1).shuffle(answers)
    questions = {str(n): {"QUESTION": f"{n}?", "final_decision": answer} for n, answer in enumerate(answers)}
    names = ["train_set.json", "dev_set.json", "test_set.json"]
    made = download.FORMS["PubMedQA's split"](json.dumps(questions).encode(), names)
    splits = {name: json.loads(content) for name, content in made.items()}
    assert [len(splits[name]) for name in names] == [450, 50, 500]
    assert {id_: row for split in splits.values() for id_, row in split.items()} == questions
    for name, share in zip(names, (0.45, 0.05, 0.5), strict=True):
        of_yes = sum(row["final_decision"] == "yes" for row in splits[name].values())
        assert abs(of_yes - 552 * share) < 2
    assert made["dev_set.json"].startswith(b'{\n    "')


def test_the_manifest_is_pinned_and_complete():
    sources = load_sources()
    assert len(sources) == 13
    for name, each in sources.items():
        assert bool(each.downloads) != bool(each.why_not), name
        for pinned in each.downloads:
            assert re.match(r"https://raw\.githubusercontent\.com/[\w-]+/[\w.-]+/[0-9a-f]{40}/", pinned.url), pinned.url
            assert all(re.fullmatch("[0-9a-f]{64}", known) for known in pinned.becomes.values())
            assert all(re.fullmatch(r"[a-z_]+\.(tsv|json)", file) for file in pinned.becomes), (
                "no way out of the folder"
            )
            assert (pinned.form == "as it is") == (pinned.sha256 in pinned.becomes.values())
        made = [file for pinned in each.downloads for file in pinned.becomes]
        splits = ["train_set.json", "dev_set.json", "test_set.json"] if name == "PubMedQA" else None
        assert not made or made == (splits or ["train.tsv", "dev.tsv", "test.tsv"])


def test_the_downloads_are_the_files_of_the_tasks():
    for name, each in load_sources().items():
        made = {file: known for pinned in each.downloads for file, known in pinned.becomes.items()}
        stated = find_task(name).splits
        assert not made or made == {split.file: split.sha256 for split in (stated.train, stated.dev, stated.test)}


def test_the_command(tmp_path, capsys):
    names = [name for name, each in tomllib.loads(download.MANIFEST.read_text()).items() if "why_not" in each]
    assert main(["download-blurb", "--out", str(tmp_path), "--json", "--task", *names]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["BioASQ"]["why_not"] == "BioASQ asks for a registration" and "bioasq.org" in facts["BioASQ"]["page"]
    assert main(["download-blurb", "--out", str(tmp_path), "--task", "BC2GM"]) == 0
    assert "--accept-terms" in capsys.readouterr().out
    assert main(["download-blurb", "--out", str(tmp_path), "--task", "bioask"]) == 1
    assert "unknown data set bioask; remedy: name some of BC5CDR-chem" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(TaskError):
        download_blurb(tmp_path, ["BLUE"])
