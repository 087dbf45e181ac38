"""Study files: their recipes, their rule of fairness, and every fault by name."""

import re
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_pipeline.experiments import expand, find_recipe, find_study, recipe_names, study_files
from bert_pipeline.recipe import RecipeError
from bert_pipeline.recipe_files import load_recipe, recipe_files, validated
from bert_pipeline.stages import initial_directory
from bert_pipeline.study import Study, StudyError, amount

HEAD = """
question = "Which?"
base = "demo"
equal = "steps"
reference = "a"
pretraining_seeds = [1, 2]
"""
ARMS = """
[[arms]]
name = "a"
[[arms]]
name = "b"
[arms.changes]
pretrain.adam_beta2 = 0.999
pretrain.phases.0.learning_rate = 1e-3
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PIPELINE_STUDIES", str(tmp_path))
    monkeypatch.setenv("BERT_PIPELINE_HOME", str(tmp_path / "home"))

    def write(text: str, name: str = "mine"):
        (tmp_path / f"{name}.toml").write_text(text)

    return write


def refused(name: str = "mine") -> str:
    with pytest.raises(StudyError) as error:
        find_study(name)
    return str(error.value)


def test_an_arm_is_the_base_with_its_changes(write):
    write(HEAD + ARMS)
    base = load_recipe(recipe_files()["demo"])
    recipes = expand(find_study("mine"))
    assert [(arm, seed) for arm, seed in recipes] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [recipe.name for recipe in recipes.values()][:2] == ["mine--a--seed1", "mine--b--seed1"]
    plain, changed = recipes["a", 2], recipes["b", 2]
    assert plain.model_copy(update={"name": "demo", "description": base.description}) == base.model_copy(
        update={
            "pretrain": base.pretrain.model_copy(update={"seed": 2}),
            "evaluation": base.evaluation.model_copy(update={"baseline": False}),
        }
    )
    for section in ("corpus", "tokenizer", "nsp", "masking", "model", "evaluation"):
        assert getattr(plain, section) == getattr(changed, section), section
    assert changed.pretrain.adam_beta2 == 0.999 and changed.pretrain.phases[0].learning_rate == 1e-3
    assert changed.pretrain.phases[0].num_steps == base.pretrain.phases[0].num_steps


def test_changes_of_the_study_come_before_those_of_an_arm(write):
    write(HEAD + "[changes]\npretrain.adam_beta2 = 0.9\npretrain.phases.0.num_steps = 100\n" + ARMS)
    recipes = expand(find_study("mine"))
    assert [recipes[arm, 1].pretrain.adam_beta2 for arm in "ab"] == [0.9, 0.999]
    assert {recipe.pretrain.num_steps for recipe in recipes.values()} == {100}


def test_recipes_of_studies_are_found_by_name(write):
    write(HEAD + ARMS)
    names = recipe_names()
    assert {"demo", "mine--a--seed1", "mine--b--seed2"} <= set(names) and len(set(names)) == len(names)
    assert find_recipe("mine--b--seed2").pretrain.seed == 2
    with pytest.raises(RecipeError, match=r"study mine has no recipe mine--b--seed9: its arm or its seed was removed"):
        find_recipe("mine--b--seed9")
    with pytest.raises(RecipeError, match="no recipe is named other--b--seed9"):
        find_recipe("other--b--seed9")
    with pytest.raises(StudyError, match=r"no study is named other; remedy: name a known one \(.*start"):
        find_study("other")


def test_the_tasks_are_those_of_the_study(write):
    write(f"{HEAD}finetuning_seeds = [7, 8]\n{ARMS}")
    assert {recipe.evaluation.tasks[0].seeds for recipe in expand(find_study("mine")).values()} == {(7, 8)}
    tasks = '[[tasks]]\nname = "GAD"\nlearning_rate = [1e-5, 3e-5]\n[[tasks]]\nname = "sample-chem"\n'
    write(f"{HEAD}finetuning_seeds = [7, 8]\n{tasks}{ARMS}")
    chosen = expand(find_study("mine"))["b", 1].evaluation.tasks
    assert [task.name for task in chosen] == ["GAD", "sample-chem"] and chosen[0].learning_rate == (1e-5, 3e-5)
    write(f"{HEAD}{tasks}{ARMS}")
    assert "several tasks need the same seeds; remedy: set finetuning_seeds" in refused()


def test_an_arm_that_continues_another_starts_from_its_model(write):
    write(
        HEAD.replace('reference = "a"', 'reference = "c"\nwith_first_model = true')
        + '[[arms]]\nname = "first"\ncompared = false\n[arms.changes]\npretrain.phases.0.num_steps = 600\n'
        + '[[arms]]\nname = "b"\ncontinues = "first"\n[arms.changes]\npretrain.phases.0.num_steps = 2000\n'
        + '[[arms]]\nname = "c"\n'
    )
    recipes = expand(find_study("mine"))
    first, continued = recipes["first", 2], recipes["b", 2]
    assert first.evaluation.tasks == () and continued.evaluation.tasks
    assert continued.pretrain.init_from == "mine--first--seed2" and "tokenizer" not in continued.model_fields_set
    assert continued.model.model_fields_set == {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    with pytest.raises(RecipeError, match="starts from the model of recipe mine--first--seed2, which is not built yet"):
        initial_directory(continued)


RULES = [
    ("steps", "pretrain.phases.0.num_steps = 2000", "arm b trains for 2,000 steps, but the reference, a, for 2,600"),
    ("tokens", "pretrain.phases.0.global_batch_size = 32", "arm b trains for 5,324,800 tokens, but the reference, a"),
    ("minutes", "pretrain.adam_beta2 = 0.9", "arm a: minutes are not known before the training; remedy"),
]


@pytest.mark.parametrize(("rule", "change", "fault"), RULES)
def test_an_arm_that_breaks_the_rule_is_named(write, rule, change, fault):
    arms = f'[[arms]]\nname = "a"\n[[arms]]\nname = "b"\n%s[arms.changes]\n{change}\n'
    write(HEAD.replace('"steps"', f'"{rule}"') + arms % "")
    assert fault in refused()
    if rule != "minutes":
        write(HEAD.replace('"steps"', f'"{rule}"') + arms % 'exempt = "it is the question"\n')
        assert find_study("mine").arm("b").exempt


def test_equal_tokens_allow_other_steps(write):
    change = "pretrain.phases.0.global_batch_size = 32\npretrain.phases.0.num_steps = 1300\n"
    write(HEAD.replace('"steps"', '"tokens"') + f'[[arms]]\nname = "a"\n[[arms]]\nname = "b"\n[arms.changes]\n{change}')
    assert find_study("mine").equal == "tokens"


VALUES = st.recursive(
    st.one_of(st.integers(-2, 5), st.floats(0, 1), st.booleans(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from(["0", "1", "x", "num_steps", "learning_rate"]), inner, max_size=2),
    ),
    max_leaves=4,
)
SECTIONS = st.sampled_from(["pretrain", "model", "corpus", "tokenizer", "evaluation", "sections"])
KEYS = st.sampled_from(["phases", "seed", "init_from", "optimizer", "hidden_size", "extend", "tasks"])
CHANGES = st.dictionaries(SECTIONS, st.one_of(st.dictionaries(KEYS, VALUES, max_size=2), VALUES), max_size=2)


@settings(max_examples=50)
@given(CHANGES, CHANGES, st.booleans())
def test_any_change_is_valid_or_a_fault(of_study, of_arm, continues):
    arms = [{"name": "a"}, {"name": "b", "changes": of_arm} | ({"continues": "a"} if continues else {})]
    table = tomllib.loads(HEAD) | {"name": "mine", "changes": of_study, "arms": arms}
    try:
        recipes = expand(validated(table, Study, "mine", StudyError))
    except RecipeError as error:
        assert re.search(r"changes|mine, arm|study mine", str(error))
    else:
        assert {recipe.pretrain.seed for recipe in recipes.values()} == {1, 2}


FAULTS = [
    ('reference = "a"', 'reference = "z"', "reference is 'z'; remedy: name a compared arm (a, b)"),
    ('name = "b"', 'name = "a"', "two arms are named a; remedy: rename one"),
    ('name = "b"', 'name = "b--c"', "arms.1.name"),
    ('name = "b"', 'name = "b"\ncontinues = "z"', "arm b: continues is 'z'; remedy: name an arm that is listed before"),
    ('name = "b"', 'name = "b"\ncompared = false', "arm b: compared is false, but no arm continues its model"),
    ("[1, 2]", "[1, 1]", "pretraining_seeds is [1, 1]; remedy: name each seed once"),
    ("pretrain.adam_beta2 = 0.999", "pretrain.seed = 3", "changes.pretrain.seed: no arm may change it; remedy"),
    (
        "pretrain.adam_beta2 = 0.999\npretrain.phases",
        "pretrain = 5\nmodel",
        "arms.1.changes.pretrain: Input should be a",
    ),
    ("pretrain.adam_beta2 = 0.999", "evaluation.tasks = []", "changes.evaluation: no arm may change it; remedy"),
    (
        "pretrain.adam_beta2 = 0.999",
        "pretrain.adam_beta3 = 0.9",
        "arm b: 1 fault(s)\n  pretrain.adam_beta3: unknown key; did",
    ),
    (
        "phases.0.learning_rate",
        "phases.3.learning_rate",
        "changes.pretrain.phases.3: not a table of the recipe's phases",
    ),
    ('base = "demo"', 'base = "demos"', "no recipe is named demos; remedy: name recipe files"),
    ('question = "Which?"', 'questions = "Which?"', "questions: unknown key; did you mean question?"),
    ('equal = "steps"', 'equal = "epochs"', "equal: Input should be 'steps', 'tokens' or 'minutes'"),
]


@pytest.mark.parametrize(("old", "new", "fault"), FAULTS)
def test_a_fault_is_named_with_its_place(write, old, new, fault):
    assert old in HEAD + ARMS
    write((HEAD + ARMS).replace(old, new))
    assert fault in refused()


def test_a_study_may_not_have_the_name_of_a_recipe_or_a_separator(write):
    write(HEAD + ARMS, "demo")
    assert "a recipe is named demo, too; remedy: rename the study" in refused("demo")
    write(HEAD + ARMS, "my--study")
    assert "name: has two hyphens in a row" in refused("my--study")


def test_an_invalid_study_does_not_stop_other_experiments(write, caplog):
    write("question = 1")
    assert "start--plain--seed1" in recipe_names() and not [name for name in recipe_names() if name.startswith("mine")]
    assert "a study is left out" in caplog.text


def test_every_packaged_study_is_valid():
    assert {"start"} <= study_files().keys()
    for name in study_files():
        study = find_study(name)
        assert study.question.endswith("?") and all(arm.description for arm in study.arms)


ABLATIONS = ["ablation-masking", "ablation-text", "ablation-vocabulary"]


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changed_for_a_gpu_as_the_page_says_is_valid(name, write):
    text = study_files()[name].read_text()
    text = text.replace('base = "small"', 'base = "crammed"').replace('equal = "steps"', 'equal = "minutes"')
    text = re.sub(r"^.*(num_steps|warmup_steps) = .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\[\[tasks\]\]\n(.+\n)+", "", text, flags=re.MULTILINE)
    first = "compared = false\n[arms.changes]\n"
    text = text.replace(first, f"{first}pretrain.budget_minutes = 0.05\n")
    write(text, "on-a-gpu")
    study, base = find_study("on-a-gpu"), load_recipe(recipe_files()["crammed"])
    for arm in study.compared_arms:
        recipe = expand(study)[arm.name, 1]
        assert recipe.pretrain.budget_minutes == 25
        assert [task.name for task in recipe.evaluation.tasks] == [task.name for task in base.evaluation.tasks]


def test_the_arms_of_the_ablation_of_text_differ_in_text_alone():
    study = find_study("ablation-text")
    arms = [expand(study)[arm.name, 2] for arm in study.compared_arms]
    alike = [recipe.model_dump(exclude={"name", "description", "corpus"}) for recipe in arms]
    assert alike[1:] == alike[:-1] and arms[0].pretrain.init_from == "ablation-text--start--seed2"
    assert len({recipe.corpus.path for recipe in arms}) == len(arms)


def test_a_first_model_of_one_step_keeps_its_random_weights():
    for name in ("thesis", "ablation-text", "ablation-vocabulary"):
        starts = [recipe for recipe in expand(find_study(name)).values() if recipe.pretrain.num_steps == 1]
        assert len(starts) == 3
        for start in starts:
            [phase] = start.pretrain.phases
            assert phase.learning_rate == phase.muon_learning_rate == 1e-12 and not start.evaluation.tasks


def test_the_arms_of_the_thesis_have_equal_totals_and_tuned_rates():
    """Also with the steps of a first model; only the arm on top of a whole general model has more."""
    study = find_study("thesis")
    recipes = {arm: recipe for (arm, seed), recipe in expand(study).items() if seed == 1}
    totals = {arm.name: amount(study, arm.name, recipes) for arm in study.compared_arms}
    assert totals == dict.fromkeys(totals, 3100) | {"continued-on-top": 6200} and len(totals) == 6
    assert recipes["continued-extended"].tokenizer.extend == 4000
    assert len(study.pretraining_seeds) >= 3 and len(study.finetuning_seeds) >= 3
    tasks = recipes["domain"].evaluation.tasks
    assert [task.name for task in tasks] == ["BC5CDR-chem", "BC5CDR-disease", "BC2GM", "GAD"]
    assert all(len(task.learning_rate) > 1 for task in tasks)
