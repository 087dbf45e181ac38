"""The recipe: what one experiment computes, and nothing else.

Where and how fast it runs (devices, processes, precision, paths, servers) is set in infra/ and in environment
variables (settings.py), so a recipe gives the same artifacts on every machine.

The defaults are BERT-base as published (Devlin et al. 2019, arXiv 1810.04805, and the flags of google-research/bert);
a recipe file states only what it changes. docs/reference/recipe.md is generated from the docstrings of the fields.
"""

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


CleaningRule = Literal[
    "all",
    "entities",
    "latex",
    "markup",
    "hyphenation",
    "misread",
    "truncation",
    "editorial_notes",
    "translated_titles",
    "placeholders",
    "supplements",
    "copyright_notices",
]


FOR_READERS = ("description", "expected_mlm_loss")
"""Keys of a recipe that nothing is computed from."""


class RecipeError(ValueError):
    """An invalid recipe; the message lists every fault with its dotted path."""


class Section(BaseModel):
    """One table of a recipe: frozen and strictly typed; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that did not exist when the first artifacts were built; see `for_origin`."""

    def for_origin(self) -> dict[str, Any]:
        """The values that decide an artifact's fingerprint.

        A key of ADDED_LATER is left out while it has its default, so that a new key changes no fingerprint.
        """
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields}
        added = {name for name in self.ADDED_LATER if values[name] == fields[name].default}
        return {name: _for_origin(value) for name, value in values.items() if name not in added}


def _for_origin(value: Any) -> Any:
    if isinstance(value, Section):
        return value.for_origin()
    return [_for_origin(each) for each in value] if isinstance(value, tuple) else value


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return ""


class CorpusRecipe(Section):
    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"csv_delimiter"})

    source: Literal["files", "pubmed", "sample"] = "files"
    """`files`: plain text (.txt, .text, .md), .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, JATS articles and
    sets of them or of PubMed citations (.nxml, .xml) and .tar archives of articles, each also compressed as .gz, .xz,
    .bz2 or .zst, and .zip archives of these files. `pubmed`: NLM's baseline and update files, downloaded by
    `bert-pipeline download-pubmed`. `sample`: text generated for the demo."""
    path: str = ""
    """File, folder or glob of the text. Relative paths start from BERT_PIPELINE_DATA (default: the
    project, else the current directory)."""
    sources_file: str = ""
    """Path of the `sources.jsonl` of an earlier corpus. Only the files listed there are read; a missing or changed file
    is an error. Empty: read every file found."""
    cutoff: str = ""
    """Read only the files released up to this day (YYYY-MM-DD; source = "pubmed"). Empty: read all files."""
    text_fields: tuple[str, ...] = Field(("text",), min_length=1)
    """Fields of a record that form the document, in this order. Each field is split into sentences separately. An
    article has the fields title, abstract and body."""
    id_field: str = ""
    """Field with the id of the document. Empty: the id is `<file name>:<record number>`."""
    csv_delimiter: str = Field("", pattern=r'^[^"\r\n]?$')
    """Character between the columns of .csv files. Empty: comma, semicolon, tab or vertical bar, recognized from the
    header. The columns of .tsv files are separated by tabs, and `"` is an ordinary character there."""
    section_titles: bool = False
    """Keep the section titles of articles (.nxml, .xml, .tar) as text."""
    cleaning: tuple[CleaningRule, ...] = ()
    """Cleaning rules by name (`data/corpus/cleaning.py`), applied in this order. ["all"]: every rule, in the order of
    that file."""
    language: str = Field("", pattern=r"^([a-z]{2})?$")
    """Drop documents detected as another language than this (ISO 639-1 code, for example `en`). Empty: keep all
    languages."""
    min_words: int = Field(0, ge=0)
    """Drop documents with fewer words than this. For a PubMed citation, only the words of its abstract count."""
    drop_retracted: bool = False
    """Drop retracted citations (source = "pubmed")."""
    near_duplicate_threshold: Fraction = 0.0
    """Drop a document if the Jaccard similarity of its word 5-grams with an earlier document reaches this value.
    0: keep near duplicates."""
    unicode_normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalization form, applied to the text before any other step."""
    sentence_splitter: Literal["segtok", "lines"] = "segtok"
    """`segtok`: split the text by segtok's rules, and after the sentence marks of scripts that need no blank (。！？
    ...). `lines`: the text already has one sentence per line, the input format of google-research/bert."""
    heldout_fraction: Fraction = 0.01
    """Share of the documents reserved for held-out evaluation, chosen by a hash of the document id."""
    documents_per_shard: int = Field(10_000, ge=2)
    """Documents in one shard, the unit of work of a worker process. When source files are added, only their own shards
    are built."""
    max_rejected_fraction: Fraction = 0.001
    """Broken records are left out and reported; the stage fails if their share of all records exceeds this value."""
    exclude_tasks: Literal["evaluation"] | tuple[str, ...] = ()
    """Drop documents that contain dev or test examples of these tasks. `evaluation`: the tasks in
    evaluation.tasks."""
    sample_documents: int = Field(6_000, ge=100)
    """Number of documents to generate (source = "sample")."""
    seed: Seed = 12345
    """Seed of the sample generator (source = "sample")."""

    @field_validator("cutoff")
    @classmethod
    def _cutoff_is_a_day(cls, cutoff: str) -> str:
        if cutoff and cutoff != _day(cutoff):
            raise ValueError('not a day; remedy: write it as "2026-01-31"')
        return cutoff

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source != "sample" and not self.path:
            example = "pubmed" if self.source == "pubmed" else "my-texts/*.jsonl.gz"
            raise ValueError(f'path is needed when source = "{self.source}"; remedy: path = "{example}"')
        if self.source != "pubmed" and (self.cutoff or self.drop_retracted):
            raise ValueError('cutoff and drop_retracted have no effect unless source = "pubmed"; remedy: remove them')
        return self


class TokenizerRecipe(Section):
    ADDED_LATER = frozenset({"strip_accents", "extend"})
    WITH_INIT_FROM: ClassVar[frozenset[str]] = frozenset({"extend", "min_frequency", "max_documents", "seed"})
    """The keys that have an effect on a vocabulary that pretrain.init_from brings: how it is extended."""

    vocab_size: int = Field(30_522, ge=100, le=2**31)
    """Number of pieces, including the five special tokens. The stage fails if the text yields fewer."""
    lowercase: bool = True
    """Lowercase the text, as in BERT-base uncased."""
    strip_accents: bool | None = None
    """Decompose characters (Unicode NFD) and remove their accents. Not set: strip accents if lowercase is true, as BERT
    does. This damages scripts whose characters are composed of parts: Hangul syllables become jamo, and kana, Thai and
    Devanagari lose marks. For such text set it to false."""
    min_frequency: int = Field(2, ge=1)
    """Merge two pieces only if they occur next to each other at least this often."""
    limit_alphabet: int = Field(1_000, ge=1)
    """Maximum number of distinct characters in the vocabulary; words with a rarer one become [UNK]. The default suits
    alphabets; Chinese and Japanese text, and Korean with strip_accents = false, need several thousand (the stage warns
    and names the number)."""
    max_documents: int = Field(0, ge=0)
    """Learn the vocabulary from about this many training documents, selected by a hash of document id and seed.
    0: use all of them."""
    seed: Seed = 12345
    """Seed for the selection of documents when max_documents is set."""
    extend: int = Field(0, ge=0)
    """With pretrain.init_from: add this many pieces to its vocabulary, those that save the most tokens on the text. The
    ids of its pieces do not change. The row of a new piece in the embedding and in the MLM head begins as the mean of
    the rows of the pieces that it replaces."""


class NspRecipe(Section):
    objective: Literal["nsp", "sop", "none"] = "nsp"
    """`nsp`: predict whether segment B follows segment A (Devlin et al. 2019). `sop`: predict whether A and B were
    swapped (Lan et al. 2020). `none`: rows of one segment and no such loss."""
    dupe_factor: int = Field(10, ge=1, lt=2**16)
    """Number of passes over the training text. Each pass draws new pairs and masks."""
    short_seq_prob: Fraction = 0.1
    """Share of pairs whose target length is drawn at random instead of being max_seq_length."""
    target_draw: Literal["document", "example"] = "document"
    """Draw the target length once per document and pass (`document`, as google-research/bert does) or for each pair
    (`example`)."""
    nsp_prob: Fraction = 0.5
    """Probability that B comes from a random other document. A chunk with a single sentence always gets a random
    B."""
    balance: bool = False
    """Make both labels equally frequent: some pairs for which a random B was drawn get the real B instead."""
    truncation: Literal["random_segment", "longest_first"] = "random_segment"
    """How a pair that is too long is shortened. `random_segment`: remove tokens at the end of A or B, chosen at random
    each time. `longest_first` (google-research/bert): remove them at either end of the longer segment."""
    truncate_at_word_starts: bool = False
    """Never cut a segment so that it begins in the middle of a word."""
    seed: Seed = 12345
    """Seed of all random draws of this stage."""


class MaskingRecipe(Section):
    masked_lm_prob: float = Field(0.15, gt=0, le=1)
    """Share of the tokens that the model must predict in training. Not 0: there would be no loss to learn from. In
    held-out rows it is always 15 %, so that the held-out scores of recipes with different shares can be compared."""
    max_predictions_per_seq: int = Field(0, ge=0)
    """Maximum number of predicted tokens in a row. 0: ceil(masked_lm_prob * max_seq_length), which is 20 at length 128
    and 77 at 512."""
    do_whole_word_mask: bool = False
    """Mask all pieces of a word together."""
    replacement: Literal["piece", "word"] = "piece"
    """Draw the 80/10/10 replacement ([MASK], random, unchanged) for each piece (google-research/bert) or once per
    word."""
    seed: Seed = 12345
    """Seed of all random draws of this stage."""


class ModelRecipe(Section):
    """The fields of transformers.BertConfig that an experiment may change."""

    hidden_size: int = Field(768, ge=2)
    """Width of the hidden states."""
    num_hidden_layers: int = Field(12, ge=1)
    """Number of encoder layers."""
    num_attention_heads: int = Field(12, ge=1)
    """Attention heads per layer; must divide hidden_size."""
    intermediate_size: int = Field(3072, ge=1)
    """Width of the feed-forward network; 4 * hidden_size in BERT."""
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """Activation of the feed-forward network."""
    hidden_dropout_prob: Fraction = 0.1
    """Dropout rate of the embeddings and of each layer's outputs."""
    attention_probs_dropout_prob: Fraction = 0.1
    """Dropout rate of the attention weights."""
    max_position_embeddings: int = Field(512, ge=8)
    """Longest input in tokens. No phase or task may set a larger max_seq_length."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of newly initialized weights."""
    layer_norm_eps: float = Field(1e-12, gt=0)
    """Added to the variance in LayerNorm."""
    structured_attention_layers: int = Field(0, ge=0)
    """Encoder layers, from the first, whose attention heads start by looking at fixed neighbours instead of at random
    (training/model/structure.py). The model learns several times sooner; the checkpoint stays a stock BERT. 0: random
    weights as published."""
    structured_attention_strength: float = Field(5.0, gt=0)
    """How much a head of these layers prefers its neighbour at the start, in units of the attention score."""

    ADDED_LATER = frozenset({"structured_attention_layers", "structured_attention_strength"})

    @property
    def bert_config(self) -> dict[str, Any]:
        """The fields that transformers.BertConfig has, too."""
        return self.model_dump(exclude=set(self.ADDED_LATER))

    @model_validator(mode="after")
    def _structured_layers_exist(self) -> Self:
        if self.structured_attention_layers > self.num_hidden_layers:
            raise ValueError(
                f"structured_attention_layers {self.structured_attention_layers} is more than num_hidden_layers "
                f"{self.num_hidden_layers}"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class PhaseRecipe(Section):
    """A part of training with one sequence length."""

    max_seq_length: int = Field(ge=8)
    """Maximum number of tokens in a pair, including [CLS] and both [SEP]."""
    num_steps: int = Field(0, ge=0)
    """Number of optimizer steps. With pretrain.budget_minutes, set `budget_fraction` instead."""
    budget_fraction: Fraction | None = None
    """Share of pretrain.budget_minutes for this phase; the shares of all phases sum to 1."""
    global_batch_size: int = Field(256, ge=1)
    """Pairs per optimizer step, summed over all processes; it does not depend on the number of GPUs."""
    learning_rate_handover: Literal["continue", "restart"] | None = None
    """Required for every phase after the first. `continue`: the schedule of the previous phase (one warm-up, one decay)
    spans this phase, too. `restart`: this phase starts a new schedule."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. Set it in every phase that starts a schedule, and only there."""
    muon_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of Muon. Set it together with learning_rate if pretrain.optimizer is `muon`."""
    warmup_steps: int | None = Field(None, ge=0)
    """Steps of linear warm-up to the peak, followed by linear decay to 0 at the end of the schedule. Set it together
    with learning_rate."""
    warmup_fraction: Fraction | None = None
    """With pretrain.budget_minutes: warm-up as a share of the schedule's steps, instead of warmup_steps."""

    ADDED_LATER = frozenset({"muon_learning_rate"})


class PretrainRecipe(Section):
    init_from: str = ""
    """Start from the weights and the vocabulary of this model (continual pretraining): the name of another recipe, or a
    Hugging Face directory of a BERT, found like corpus.path. Empty: train from scratch with a vocabulary learnt from
    the text."""
    phases: tuple[PhaseRecipe, ...] = Field(
        (
            PhaseRecipe(max_seq_length=128, num_steps=900_000, learning_rate=1e-4, warmup_steps=10_000),
            PhaseRecipe(max_seq_length=512, num_steps=100_000, learning_rate_handover="continue"),
        ),
        min_length=1,
    )
    """Phases of training, in order. BERT-base: 900,000 steps at 128 tokens, then 100,000 at 512."""
    budget_minutes: float | None = Field(None, gt=0)
    """Train for this many minutes instead of a given number of steps. The minutes include steps, held-out measurements
    and checkpoints, but not the start-up before the first step and not the export. The number of steps follows from
    the speed, which is measured once, before the first step."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw`: AdamW for all weights, as published. `muon`: Muon for the matrices of the encoder layers, AdamW for the
    rest (training/model/muon.py)."""
    muon_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the matrices that Muon trains; 0.5 keeps feed-forward units active (docs/fast-start.md)."""
    adam_beta1: Fraction = 0.9
    """Decay rate of AdamW's running mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay rate of AdamW's running mean of squared gradients."""
    adam_epsilon: float = Field(1e-6, gt=0)
    """Added to the denominator of AdamW's update."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW; biases and LayerNorm weights are exempt."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Clip the gradient to this norm."""
    max_skipped_steps: int = Field(10, ge=0)
    """Steps whose loss or gradient is not finite are skipped; more than this many in a row stop the run."""
    log_every: int = Field(50, ge=1)
    """Steps between rows of metrics.jsonl. The first and the last step are always logged."""
    eval_every: int = Field(10_000, ge=1)
    """Steps between measurements on held-out pairs. They are also measured at the first step and at the end."""
    heldout_pairs: int = Field(2_000, ge=1)
    """Number of held-out pairs to measure, spread evenly over all of them; all if there are fewer."""
    checkpoint_every: int = Field(1_000, ge=1)
    """Steps between checkpoints. A killed run repeats at most this many steps."""
    checkpoints_kept: int = Field(2, ge=1)
    """Number of newest checkpoints to keep. All are removed when training is finished."""
    snapshot_every: int = Field(0, ge=0)
    """Steps between intermediate models that are kept in the artifact, to be evaluated along with the final model.
    0: keep none."""
    seed: Seed = 12345
    """Seed of the initial weights, the dropout and the order of pairs."""

    ADDED_LATER = frozenset({"optimizer", "muon_weight_decay"})

    @model_validator(mode="after")
    def _every_schedule_is_complete(self) -> Self:
        in_steps, in_shares = ("num_steps", "warmup_steps"), ("budget_fraction", "warmup_fraction")
        wanted, others = (in_shares, in_steps) if self.budget_minutes else (in_steps, in_shares)
        length, warmup = wanted
        case = "with" if self.budget_minutes else "without"
        faults = []
        for number, phase in enumerate(self.phases):
            here = f"phases.{number}"
            if number == 0 and phase.learning_rate_handover:
                faults.append(f"{here}.learning_rate_handover has no effect in the first phase; remedy: remove it")
            if number > 0 and not phase.learning_rate_handover:
                faults.append(f'{here}.learning_rate_handover is missing; remedy: set it to "continue" or "restart"')
            if not getattr(phase, length):
                faults.append(f"{here}.{length} is missing; remedy: set it")
            for name, instead in zip(others, wanted, strict=True):
                if getattr(phase, name):
                    faults.append(f"{here}.{name} has no effect {case} budget_minutes; remedy: set {instead} instead")
            starts = number == 0 or phase.learning_rate_handover == "restart"
            rates = ("learning_rate", "muon_learning_rate") if self.optimizer == "muon" else ("learning_rate",)
            if self.optimizer != "muon" and phase.muon_learning_rate is not None:
                faults.append(f'{here}.muon_learning_rate has no effect without optimizer = "muon"; remedy: remove it')
            for name in (*rates, warmup):
                if starts and getattr(phase, name) is None:
                    faults.append(f"{here}.{name} is missing; remedy: set it, because this phase starts a schedule")
                if not starts and getattr(phase, name) is not None:
                    faults.append(f"{here}.{name} has no effect in a phase that continues; remedy: remove it")
        shares = sum(phase.budget_fraction or 0.0 for phase in self.phases)
        if self.budget_minutes and abs(shares - 1.0) > 1e-6:
            faults.append(f"the budget_fraction of all phases sum to {shares:g}; remedy: set shares that sum to 1")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)


class TaskRecipe(Section):
    """One fine-tuning evaluation. Keys left out take the values of the task's file (evaluation/tasks/NAME.toml)."""

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"stop_losing_settings"})

    name: str
    """Name of the task; `bert-pipeline evaluate --list` shows all of them."""
    profile: Literal["quick", "published"] = "quick"
    """`quick`: one setting and one seed. `published`: the grid (selected on dev) and the seeds of BLURB's authors."""
    learning_rate: Positive | tuple[Positive, ...] | None = None
    """Peak learning rate, or several values for a grid (see num_epochs)."""
    batch_size: Count | tuple[Count, ...] | None = None
    """Examples per step, or several values for a grid (see num_epochs)."""
    num_epochs: Count | tuple[Count, ...] | None = None
    """Passes over the training set. Several values of learning_rate, batch_size or num_epochs form a grid: every
    combination runs with the first seed, and the combination with the best dev score runs with all seeds."""
    max_seq_length: int | None = Field(None, ge=8)
    """Longest input in tokens. Longer inputs are cut, and entities in the removed part count as missed. Left out: the
    task's value, or the model's limit if that is lower."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps with linear warm-up; the learning rate then decays to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW; biases and LayerNorm weights are exempt."""
    seeds: tuple[Seed, ...] | None = Field(None, min_length=1)
    """Seeds of the fine-tuning runs, one run per seed."""
    other_data: bool = False
    """Accept data files whose SHA-256 or size differs from the task's."""
    stop_losing_settings: bool = False
    """Stop a setting of a grid after half of its epochs if its dev score is then significantly below the best one's
    (paired tests, 5 % level). It saves time, but a setting that would have caught up is lost."""


class EvaluationRecipe(Section):
    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"baseline"})

    baseline: bool = True
    """Also fine-tune the same architecture from random weights, with every seed: the difference shows what pretraining
    contributed."""
    tasks: tuple[TaskRecipe, ...] = ()
    """Tasks to fine-tune and score. Each is a separate Dagster asset, `evaluation/NAME`."""

    @model_validator(mode="after")
    def _each_task_once(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation.tasks names a task twice: {sorted(names)}; remedy: remove one of them")
        return self


class RegistryRecipe(Section):
    promote: Literal["never", "if_better"] = "never"
    """`never`: only a person promotes a registered model to champion (`bert-pipeline promote`). `if_better`: the graph
    also promotes a model that beats the champion under the rule of orchestration/registry/champion.py."""


class RetrainingRecipe(Section):
    """What Dagster starts when new text arrives. It is not part of any fingerprint: it decides when a model is
    trained."""

    hours_per_month: float = Field(0.0, ge=0)
    """Maximum hours of automatic retraining runs within any 30 days. 0: new text rebuilds only the cheap data assets
    (corpus, pairs, masks); training runs on a schedule or by hand."""
    tokenizer: Literal["learn", "keep"] = "learn"
    """Vocabulary of a retraining that was not started by hand. `learn`: learn it again from all the text. `keep`: use
    the existing one, so that new source files cost only their own shards of pairs and masks, and models share token
    ids."""


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the experiment and of its Dagster partition: the stem of the recipe's file."""
    description: str = ""
    """A description for readers; MLflow shows it with the registered model."""
    expected_mlm_loss: tuple[float, float] | None = None
    """The lowest and the highest held-out MLM loss that `bert-pipeline init` expects; the report shows it beside the
    outcome."""
    corpus: CorpusRecipe
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    nsp: NspRecipe = NspRecipe()
    masking: MaskingRecipe = MaskingRecipe()
    model: ModelRecipe = ModelRecipe()
    pretrain: PretrainRecipe = PretrainRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    registry: RegistryRecipe = RegistryRecipe()
    retraining: RetrainingRecipe = RetrainingRecipe()

    @property
    def max_seq_lengths(self) -> tuple[int, ...]:
        """The distinct sequence lengths of the phases, ascending: datasets are built for each of them."""
        return tuple(sorted({phase.max_seq_length for phase in self.pretrain.phases}))

    def length_faults(self) -> list[str]:
        """A message for each max_seq_length that exceeds the model's positions."""
        limit = self.model.max_position_embeddings
        lengths = {f"pretrain.phases.{n}": phase.max_seq_length for n, phase in enumerate(self.pretrain.phases)}
        lengths |= {
            f"evaluation.tasks.{n}": task.max_seq_length
            for n, task in enumerate(self.evaluation.tasks)
            if task.max_seq_length is not None
        }
        return [
            f"{path}.max_seq_length is {length}, but model.max_position_embeddings is {limit}; "
            "remedy: lower the first or raise the second"
            for path, length in lengths.items()
            if length > limit
        ]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        faults = self.length_faults()
        faults += self._vocabulary_faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _vocabulary_faults(self) -> list[str]:
        section = self.tokenizer
        brought = "with pretrain.init_from, which brings its vocabulary"
        if not self.pretrain.init_from:
            fault = "tokenizer.extend has no effect without pretrain.init_from; remedy: set tokenizer.vocab_size"
            return [fault] if section.extend else []
        if "tokenizer" in self.model_fields_set and not section.extend:
            return [f"tokenizer has no effect {brought}; remedy: remove it, or add pieces by tokenizer.extend"]
        without_effect = sorted(section.model_fields_set - section.WITH_INIT_FROM)
        return [f"tokenizer.{key} has no effect {brought}; remedy: remove it" for key in without_effect]
