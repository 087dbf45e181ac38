import json

import pytest
from pydantic import ValidationError

from bert_pipeline.recipe import ModelRecipe, PretrainRecipe, Recipe, RecipeError, Section
from bert_pipeline.recipe_files import load_recipe, recipe_files

CORPUS = '[corpus]\npath = "x.txt"\n'


def load(tmp_path, text, name="try"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def faults(tmp_path, text):
    with pytest.raises(RecipeError) as error:
        load(tmp_path, text)
    return str(error.value)


def test_the_defaults_are_bert_base_as_published(tmp_path):
    """Devlin et al. 2019, section 3 and appendix A.2; the flags of google-research/bert."""
    recipe = load(tmp_path, CORPUS)
    assert recipe.model == ModelRecipe(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    assert (recipe.nsp.dupe_factor, recipe.nsp.short_seq_prob, recipe.masking.masked_lm_prob) == (10, 0.1, 0.15)
    first, second = recipe.pretrain.phases
    assert (first.max_seq_length, first.num_steps, first.global_batch_size) == (128, 900_000, 256)
    assert (second.max_seq_length, second.num_steps) == (512, 100_000)
    assert (first.learning_rate, first.warmup_steps, recipe.pretrain.weight_decay) == (1e-4, 10_000, 0.01)
    assert recipe.tokenizer.vocab_size == 30_522 and recipe.max_seq_lengths == (128, 512)


def test_one_error_lists_all_faults_with_their_paths(tmp_path):
    told = faults(
        tmp_path,
        """
        surplus = 1
        [corpus]
        path = "x"
        heldout_fraction = 2.0
        [masking]
        masked_lm_probability = 0.2
        [model]
        hidden_size = "wide"
        [[pretrain.phases]]
        max_seq_length = 128
        num_steps = 10
        learning_rat = 1e-3
        [[evaluation.tasks]]
        name = "BC5CDR-chem"
        seeds = [1, "2"]
        """,
    )
    for expected in (
        "try.toml: 7 fault(s)",
        "surplus: unknown key",
        "corpus.heldout_fraction: Input should be less than or equal to 1 (got 2.0)",
        "masking.masked_lm_probability: unknown key; did you mean masked_lm_prob?",
        "model.hidden_size: Input should be a valid integer (got 'wide')",
        "pretrain.phases.0.learning_rat: unknown key; did you mean learning_rate?",
        "evaluation.tasks.0.seeds.1: Input should be a valid integer (got '2')",
    ):
        assert expected in told


def test_learning_rate_handover_is_explicit(tmp_path):
    phase = "[[pretrain.phases]]\nmax_seq_length = 128\nnum_steps = 10\n"
    start = "learning_rate = 1e-3\nwarmup_steps = 0\n"
    assert "phases.0.learning_rate is missing" in faults(tmp_path, CORPUS + phase)
    assert "phases.1.learning_rate_handover is missing" in faults(tmp_path, CORPUS + phase + start + phase)
    both = CORPUS + phase + start + phase + 'learning_rate_handover = "continue"\n'
    assert load(tmp_path, both).pretrain.num_steps == 20
    assert "phases.1.learning_rate has no effect" in faults(tmp_path, both + start)


def test_a_recipe_states_steps_or_a_budget(tmp_path):
    budget = CORPUS + "[pretrain]\nbudget_minutes = 5\n"
    first = "[[pretrain.phases]]\nmax_seq_length = 128\nbudget_fraction = {}\nlearning_rate = 1e-3\n"
    second = '[[pretrain.phases]]\nmax_seq_length = 512\nbudget_fraction = {}\nlearning_rate_handover = "continue"\n'
    good = budget + first.format(0.75) + "warmup_fraction = 0.0\n" + second.format(0.25)
    assert load(tmp_path, good).pretrain.num_steps == 0, "not known yet"
    told = faults(tmp_path, budget + first.format(0.75) + "num_steps = 9\nwarmup_steps = 3\n" + second.format(0.5))
    for expected in (
        "phases.0.num_steps has no effect with budget_minutes; remedy: set budget_fraction instead",
        "phases.0.warmup_steps has no effect with budget_minutes; remedy: set warmup_fraction instead",
        "phases.0.warmup_fraction is missing",
        "the budget_fraction of all phases sum to 1.25; remedy: set shares that sum to 1",
    ):
        assert expected in told
    told = faults(tmp_path, good.replace("budget_minutes = 5", ""))
    assert "phases.1.budget_fraction has no effect without budget_minutes; remedy: set num_steps instead" in told
    assert "phases.0.num_steps is missing" in told and "phases.0.warmup_steps is missing" in told
    assert "phases.0.num_steps has no effect with budget_minutes" in faults(tmp_path, budget), "BERT-base's phases"


def test_a_sequence_longer_than_the_models_positions_is_refused(tmp_path):
    told = faults(tmp_path, CORPUS + "[model]\nmax_position_embeddings = 128\n")
    assert "pretrain.phases.1.max_seq_length is 512, but model.max_position_embeddings is 128" in told


def test_heads_must_divide_the_width(tmp_path):
    told = faults(tmp_path, CORPUS + "[model]\nhidden_size = 100\nnum_attention_heads = 3\n")
    assert "model: hidden_size 100 is not a multiple of num_attention_heads 3" in told


def test_a_missing_corpus_path_names_the_remedy(tmp_path):
    assert 'corpus: path is needed when source = "files"; remedy' in faults(tmp_path, "[corpus]\n")


def test_an_unreadable_recipe_file_is_an_error(tmp_path):
    assert "not a TOML file" in faults(tmp_path, "[corpus")
    assert "the file's stem (try) is the name" in faults(tmp_path, 'name = "x"\n' + CORPUS)
    with pytest.raises(RecipeError, match=r"absent\.toml: no such recipe; remedy: .* contains try\.toml$"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match=r"remedy: .*none contains no recipe$"):
        load_recipe(tmp_path / "none" / "absent.toml")


KOREAN = 'description = "환자 기록"\n' + CORPUS


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path, newline):
    text = KOREAN.replace("\n", newline)
    (tmp_path / "notepad.toml").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "other.toml").write_bytes(text.encode())
    recipe = load_recipe(tmp_path / "notepad.toml")
    assert recipe.description == "환자 기록"
    assert recipe.model_copy(update={"name": "other"}) == load_recipe(tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("cp949", "line 1 is not UTF-8 text"),
        ("utf-16", "line 1 is not UTF-8 text"),
        ("utf-16-le", "not UTF-8 text"),
        ("utf-16-be", "not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("text", [KOREAN, CORPUS])
def test_a_recipe_in_another_encoding_is_refused_in_plain_words(tmp_path, encoding, told, text):
    path = tmp_path / "try.toml"
    path.write_bytes(text.encode(encoding))
    if text == CORPUS and encoding == "cp949":
        assert load_recipe(path).corpus.path == "x.txt", "ASCII is UTF-8"
        return
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert told in str(error.value) and str(error.value).endswith("remedy: save the file as UTF-8 in your editor")
    (tmp_path / "third.toml").write_bytes(b"[corpus]\npath = 'x'\n# \xb1\xe2\xb7\xcf\n")
    with pytest.raises(RecipeError, match="line 3 is not UTF-8 text"):
        load_recipe(tmp_path / "third.toml")


@pytest.mark.parametrize("name", ["한국어", "my recipe", "-x", "a+b"])
def test_a_name_that_is_not_allowed_is_refused_with_the_rule(tmp_path, name):
    with pytest.raises(RecipeError) as error:
        load(tmp_path, CORPUS, name)
    assert f"name: {name!r}, from the name of the file" in str(error.value)
    assert "digits and _ - ., and starts with a letter or a digit; remedy: rename the file" in str(error.value)


def test_a_recipe_is_frozen(tmp_path):
    with pytest.raises(ValidationError, match="frozen"):
        load(tmp_path, CORPUS).model.hidden_size = 1


def test_every_packaged_recipe_loads():
    files = recipe_files()
    assert {"demo", "small", "general", "bert-base", "pubmedbert", "crammed", "continual"} <= files.keys()
    for name, path in files.items():
        recipe = load_recipe(path)
        assert recipe.name == name and recipe.description


def test_bert_base_states_the_defaults():
    stated, default = (
        load_recipe(recipe_files()["bert-base"]),
        Recipe.model_validate_json('{"name": "default", "corpus": {"path": "x"}}'),
    )
    for section in ("tokenizer", "nsp", "masking", "model", "pretrain"):
        assert getattr(stated, section) == getattr(default, section), section


def test_continual_differs_from_crammed_only_in_its_initial_weights_and_optimizer():
    """Text, minutes, batch and evaluation are the same; Muon and structured attention are for random weights."""
    crammed, continual = (load_recipe(recipe_files()[name]) for name in ("crammed", "continual"))
    for section in ("corpus", "nsp", "masking", "evaluation"):
        assert getattr(crammed, section) == getattr(continual, section), section
    tables = [recipe.pretrain.model_dump() for recipe in (crammed, continual)]
    different = {"init_from", "optimizer", "muon_weight_decay", "phases"}
    assert {name for name in tables[0] if tables[0][name] != tables[1][name]} == different
    phases = [table["phases"][0] for table in tables]
    schedule = {"learning_rate", "muon_learning_rate", "warmup_fraction"}
    assert {name for name in phases[0] if phases[0][name] != phases[1][name]} == schedule


def test_general_differs_from_small_only_in_its_text():
    small, general = (load_recipe(recipe_files()[name]).model_dump() for name in ("small", "general"))
    assert {name for name in small if small[name] != general[name]} == {"name", "description", "corpus"}


def test_a_key_for_citations_is_an_error_with_another_source(tmp_path):
    (tmp_path / "a.toml").write_text('corpus = { path = "x", drop_retracted = true }')
    with pytest.raises(RecipeError, match=r'cutoff and drop_retracted have no effect unless source = "pubmed"; remedy'):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('corpus = { path = "x", cleaning = ["markdown"], cutoff = "2026" }')
    with pytest.raises(
        RecipeError, match=r"(?s)corpus.cutoff: .*not a day; remedy.*corpus.cleaning.0: .*'copyright_notices'"
    ):
        load_recipe(tmp_path / "b.toml")


def test_own_recipes_are_found_next_to_the_packaged_ones(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(CORPUS)
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", str(tmp_path))
    (tmp_path / "Windows.TOML").write_text(CORPUS)
    assert recipe_files()["mine"] == tmp_path / "mine.toml"
    assert load_recipe(recipe_files()["Windows"]).name == "Windows"
    (tmp_path / "demo.toml").write_text(CORPUS)
    with pytest.raises(RecipeError, match="two recipes are named demo"):
        recipe_files()
    monkeypatch.setenv("BERT_PIPELINE_RECIPES", f"{tmp_path}:{tmp_path / 'missing'}")
    (tmp_path / "demo.toml").unlink()
    with pytest.raises(RecipeError, match=r"BERT_PIPELINE_RECIPES: .*/missing is not a folder; remedy"):
        recipe_files()


def test_a_section_survives_json():
    section = PretrainRecipe()
    assert PretrainRecipe.model_validate_json(section.model_dump_json()) == section
    assert Recipe.model_fields["pretrain"].default == section


def test_a_key_added_later_changes_no_fingerprint_until_it_is_set():
    class Inner(Section):
        ADDED_LATER = frozenset({"new"})
        old: int = 1
        new: bool = False

    class Outer(Section):
        inner: tuple[Inner, ...] = (Inner(),)

    assert Outer().for_origin() == {"inner": [{"old": 1}]}
    assert Outer(inner=(Inner(new=True),)).for_origin() == {"inner": [{"old": 1, "new": True}]}
    recipe = load_recipe(recipe_files()["demo"])
    for section in (recipe.corpus, recipe.tokenizer, recipe.nsp, recipe.masking, recipe.model, recipe.pretrain):
        everything, in_origin = section.model_dump(mode="json"), section.for_origin()
        assert all(
            everything[name] == json.loads(json.dumps(in_origin[name])) for name in in_origin if name != "phases"
        )
        assert everything.keys() - in_origin.keys() <= section.ADDED_LATER
