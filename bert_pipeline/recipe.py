"""The recipe: every choice that makes one experiment differ from another, and nothing else.

What a run computes stands here. Where and how fast it runs (devices, processes, precision, paths,
servers) stands in infra/ and the environment, so one recipe gives the same artifacts everywhere.

The defaults are BERT-base as published (Devlin et al. 2019, arXiv 1810.04805, and the flags of
google-research/bert); a recipe file states only what it changes.
"""

from datetime import date
from typing import Annotated, Literal, Self

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


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every fault with its dotted path."""


class Section(BaseModel):
    """One table of a recipe: frozen, strictly typed, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return ""


class CorpusRecipe(Section):
    source: Literal["files", "pubmed", "sample"] = "files"
    """`files`: .txt, .jsonl, .json, .csv, .tsv, .parquet, .arrow, articles (.nxml, .xml) and .tar of articles, each
    also .gz, .xz, .zst. `pubmed`: NLM's baseline and update files, as `bert-pipeline download-pubmed` fetches them.
    `sample`: the generated demo text."""
    path: str = ""
    """A file, a folder or a glob; relative paths are looked up under BERT_PIPELINE_DATA (default: here)."""
    sources_file: str = ""
    """The sources.jsonl of an earlier corpus: of the files found, these are taken, and each must be what it was."""
    cutoff: str = ""
    """The last day of release (year-month-day) of the files taken (source = "pubmed"); empty: all."""
    text_fields: tuple[str, ...] = Field(("text",), min_length=1)
    """Fields of a record that make up the document, in this order; each is split into sentences by itself. Of an
    article: title, abstract, body."""
    id_field: str = ""
    """Field that names a document; empty: `<file name>:<record number>`."""
    section_titles: bool = False
    """Of articles (.nxml, .xml, .tar), the titles of their sections are kept as text."""
    cleaning: tuple[CleaningRule, ...] = ()
    """Rules of data/cleaning.py by name, in this order; ["all"] means all of them in theirs."""
    language: str = Field("", pattern=r"^([a-z]{2})?$")
    """Documents that are in another language (ISO 639-1) are left out; empty: none is."""
    min_words: int = Field(0, ge=0)
    """Documents of fewer words are left out; of a citation, those of its abstract are counted."""
    drop_retracted: bool = False
    """Retracted citations are left out (source = "pubmed")."""
    near_duplicate_threshold: Fraction = 0.0
    """A document whose words in fives are so alike (Jaccard) with those of one before it is left out; 0: none is."""
    unicode_normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """Of the text, before anything else reads it."""
    sentence_splitter: Literal["segtok", "lines"] = "segtok"
    """`lines`: the text is split already, a sentence a line, as google-research/bert takes it."""
    heldout_fraction: Fraction = 0.01
    """Share of the documents kept out of training, chosen by a hash of the document id."""
    documents_per_shard: int = Field(10_000, ge=2)
    """What one worker takes at a time; new source files cost their own shards alone."""
    max_rejected_fraction: Fraction = 0.001
    """Broken records are set aside; more than this share of them stops the stage."""
    exclude_tasks: Literal["evaluation"] | tuple[str, ...] = ()
    """Documents that hold dev or test examples of these tasks are left out. `evaluation`: those of evaluation.tasks."""
    sample_documents: int = Field(6_000, ge=100)
    """Number of documents that the sample generator writes (source = "sample")."""
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
    vocab_size: int = Field(30_522, ge=100, le=2**31)
    """Pieces, with the five special tokens; the text must have so many."""
    lowercase: bool = True
    """Uncased, accents stripped, as in BERT-base uncased."""
    min_frequency: int = Field(2, ge=1)
    """Two pieces are merged only where they stand side by side so often."""
    limit_alphabet: int = Field(1_000, ge=1)
    """Characters kept in the vocabulary; the rarest beyond this number become [UNK]."""
    max_documents: int = Field(0, ge=0)
    """Learn from about so many training documents, drawn by a hash of their ids under the seed; 0: from all."""
    seed: Seed = 12345
    """Draws the documents where max_documents is set."""


class NspRecipe(Section):
    objective: Literal["nsp", "sop", "none"] = "nsp"
    """`nsp`: does B follow A (Devlin et al. 2019)? `sop`: were A and B swapped (Lan et al. 2020)? `none`: one segment,
    no such loss."""
    dupe_factor: int = Field(10, ge=1, lt=2**16)
    """Passes over the corpus; each pass pairs it anew."""
    short_seq_prob: Fraction = 0.1
    """Share of pairs that aim at a length drawn at random instead of max_seq_length."""
    target_draw: Literal["document", "example"] = "document"
    """Whether that length is drawn once for a document and pass (google-research/bert) or for each pair."""
    nsp_prob: Fraction = 0.5
    """Probability that B is drawn from another document; chunks of one sentence always take such a B."""
    balance: bool = False
    """Turn some freely drawn random pairs into real ones until both labels are equally frequent."""
    truncation: Literal["random_segment", "longest_first"] = "random_segment"
    """Of pairs too long: `random_segment` cuts A or B, drawn each time, at its end; `longest_first`
    (google-research/bert) cuts the longer one, at either end."""
    truncate_at_word_starts: bool = False
    """No segment begins in the middle of a word."""
    seed: Seed = 12345
    """Of all draws of this stage."""


class MaskingRecipe(Section):
    masked_lm_prob: Fraction = 0.15
    """Share of the tokens that are asked for."""
    max_predictions_per_seq: int = Field(0, ge=0)
    """Upper bound per row; 0 derives ceil(masked_lm_prob * max_seq_length): 20 at 128, 77 at 512."""
    do_whole_word_mask: bool = False
    """All pieces of a word are hidden together."""
    replacement: Literal["piece", "word"] = "piece"
    """Whether the 80/10/10 draw is made for each piece (google-research/bert) or once for a word."""
    seed: Seed = 12345
    """Of all draws of this stage."""


class ModelRecipe(Section):
    """The fields of transformers.BertConfig that an experiment may change."""

    hidden_size: int = Field(768, ge=2)
    """Width of the layers."""
    num_hidden_layers: int = Field(12, ge=1)
    """Layers of the encoder."""
    num_attention_heads: int = Field(12, ge=1)
    """Of each layer; they share out hidden_size evenly."""
    intermediate_size: int = Field(3072, ge=1)
    """Width of the feed-forward network, 4 * hidden_size in BERT."""
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """Activation of the feed-forward network."""
    hidden_dropout_prob: Fraction = 0.1
    """Dropout of embeddings and layers."""
    attention_probs_dropout_prob: Fraction = 0.1
    """Dropout of the attention weights."""
    max_position_embeddings: int = Field(512, ge=8)
    """Longest input in tokens; at least that of every phase and task."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of fresh weights."""
    layer_norm_eps: float = Field(1e-12, gt=0)
    """Added to the variance in LayerNorm."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


class PhaseRecipe(Section):
    """A stretch of training at one sequence length."""

    max_seq_length: int = Field(ge=8)
    """Tokens of a pair at most, [CLS] and both [SEP] among them."""
    num_steps: int = Field(0, ge=0)
    """Optimizer steps; with pretrain.budget_minutes they follow from `budget_fraction`."""
    budget_fraction: Fraction | None = None
    """Share of pretrain.budget_minutes."""
    global_batch_size: int = Field(256, ge=1)
    """Pairs per optimizer step, over all processes: the same on one GPU as on eight."""
    learning_rate_handover: Literal["continue", "restart"] | None = None
    """For every phase after the first. `continue`: one warm-up and one decay span this phase and the one before.
    `restart`: a schedule of its own."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak; set in each phase that starts a schedule, and only there."""
    warmup_steps: int | None = Field(None, ge=0)
    """Linear warm-up to the peak, then linear decay to 0 at the end of the schedule; set with the learning rate."""
    warmup_fraction: Fraction | None = None
    """The warm-up as a share of the schedule's steps, where a budget decides their number."""


class PretrainRecipe(Section):
    init_from: str = ""
    """Weights and vocabulary to begin with (continual pretraining): another recipe's name, or a Hugging Face directory
    of a BERT, looked up like corpus.path. Empty: fresh weights, a vocabulary learnt from the text."""
    phases: tuple[PhaseRecipe, ...] = Field(
        (
            PhaseRecipe(max_seq_length=128, num_steps=900_000, learning_rate=1e-4, warmup_steps=10_000),
            PhaseRecipe(max_seq_length=512, num_steps=100_000, learning_rate_handover="continue"),
        ),
        min_length=1,
    )
    """One after the other; BERT-base: 900,000 steps of 128 tokens, then 100,000 of 512."""
    budget_minutes: float | None = Field(None, gt=0)
    """Minutes of training instead of numbers of steps: steps, held-out measurements and checkpoints; what starts before
    the first step and the export come on top. The speed is measured once, before the first step."""
    adam_beta1: Fraction = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's mean of squares."""
    adam_epsilon: float = Field(1e-6, gt=0)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and LayerNorm."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to it."""
    max_skipped_steps: int = Field(10, ge=0)
    """Steps in a row that are skipped because their loss or gradient is not finite; one more stops the run."""
    log_every: int = Field(50, ge=1)
    """Steps between rows of metrics.jsonl; the first and the last step always have one."""
    eval_every: int = Field(10_000, ge=1)
    """Steps between measurements on held-out pairs; the first step and the end are always measured."""
    heldout_pairs: int = Field(2_000, ge=1)
    """Pairs measured (the first of the held-out rows; all of them where there are fewer)."""
    checkpoint_every: int = Field(1_000, ge=1)
    """Steps between checkpoints: what a killed run may have to do again."""
    checkpoints_kept: int = Field(2, ge=1)
    """The newest so many; all are removed when the model is done."""
    snapshot_every: int = Field(0, ge=0)
    """Steps between models that stay in the artifact, to be evaluated beside the last; 0: none."""
    seed: Seed = 12345
    """Of fresh weights, dropout and the order of pairs."""

    @model_validator(mode="after")
    def _every_schedule_is_complete(self) -> Self:
        in_steps, in_shares = ("num_steps", "warmup_steps"), ("budget_fraction", "warmup_fraction")
        wanted, others = (in_shares, in_steps) if self.budget_minutes else (in_steps, in_shares)
        length, warmup = wanted
        where = "beside" if self.budget_minutes else "without"
        faults = []
        for number, phase in enumerate(self.phases):
            here = f"phases.{number}"
            if number == 0 and phase.learning_rate_handover:
                faults.append(f"{here}.learning_rate_handover has no phase before it; remedy: remove it")
            if number > 0 and not phase.learning_rate_handover:
                faults.append(f'{here}.learning_rate_handover is missing; remedy: "continue" or "restart"')
            if not getattr(phase, length):
                faults.append(f"{here}.{length} is missing; remedy: set it")
            for name, instead in zip(others, wanted, strict=True):
                if getattr(phase, name):
                    faults.append(f"{here}.{name} has no effect {where} budget_minutes; remedy: {instead}")
            starts = number == 0 or phase.learning_rate_handover == "restart"
            for name in ("learning_rate", warmup):
                if starts and getattr(phase, name) is None:
                    faults.append(f"{here}.{name} is missing; remedy: set it, because this phase starts a schedule")
                if not starts and getattr(phase, name) is not None:
                    faults.append(f"{here}.{name} has no effect in a phase that continues; remedy: remove it")
        shares = sum(phase.budget_fraction or 0.0 for phase in self.phases)
        if self.budget_minutes and abs(shares - 1.0) > 1e-6:
            faults.append(f"the phases' budget_fraction are {shares:g} in all; remedy: shares that sum to 1")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def num_steps(self) -> int:
        return sum(phase.num_steps for phase in self.phases)


class TaskRecipe(Section):
    """One fine-tuning evaluation; what is left out is the task's own (its file in bert_pipeline/tasks/)."""

    name: str
    """One that `bert-pipeline evaluate --list` lists."""
    profile: Literal["quick", "published"] = "quick"
    """`quick`: one setting, one seed. `published`: the grid on dev and the seeds of BLURB's authors."""
    learning_rate: Positive | tuple[Positive, ...] | None = None
    """The peak."""
    batch_size: Count | tuple[Count, ...] | None = None
    """Examples a step."""
    num_epochs: Count | tuple[Count, ...] | None = None
    """Several values of one of these three make a grid: every combination is run with the first seed, and the setting
    that is best on dev is run with all seeds."""
    max_seq_length: int | None = Field(None, ge=8)
    """Longer inputs are cut, and the entities cut off count as missed. Left out: the task's, or the model's if less."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises; then it falls to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and LayerNorm."""
    seeds: tuple[Seed, ...] | None = Field(None, min_length=1)
    """One run each."""
    other_data: bool = False
    """Take files whose sha256 or size is not the task's."""


class EvaluationRecipe(Section):
    tasks: tuple[TaskRecipe, ...] = ()
    """Each is an asset of its own, `evaluation/NAME`."""

    @model_validator(mode="after")
    def _each_task_once(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"a task stands twice in evaluation.tasks: {sorted(names)}")
        return self


class RegistryRecipe(Section):
    promote: Literal["never", "if_better"] = "never"
    """Who makes a registered model the champion: a person (`bert-pipeline promote`), or also the graph, where the model
    is better than the champion by the rule of orchestration/registry/champion.py."""


class RetrainingRecipe(Section):
    """What new text sets off. Nothing of it is in the fingerprint of a stage: it decides when a model is made."""

    hours_per_month: float = Field(0.0, ge=0)
    """Hours of runs, within any 30 days, that new text may spend on retraining by itself. 0: new text makes what is
    cheap (corpus, pairs, masks), and training waits for the schedule or for a person."""
    tokenizer: Literal["learn", "keep"] = "learn"
    """A retraining that was not started by hand learns the vocabulary anew from all the text, or keeps the one that is
    there: then new source files cost their own shards of pairs and masks, and models share their ids."""


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The stem of the recipe's file: the experiment, and its Dagster partition."""
    description: str = ""
    """For people; MLflow shows it with the registered model."""
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
        """The sequence lengths that datasets are built for: those of the phases, ascending."""
        return tuple(sorted({phase.max_seq_length for phase in self.pretrain.phases}))

    def length_faults(self) -> list[str]:
        """What is longer than the model can read."""
        limit = self.model.max_position_embeddings
        lengths = {f"pretrain.phases.{n}": phase.max_seq_length for n, phase in enumerate(self.pretrain.phases)}
        lengths |= {
            f"evaluation.tasks.{n}": task.max_seq_length
            for n, task in enumerate(self.evaluation.tasks)
            if task.max_seq_length is not None
        }
        return [
            f"{path}.max_seq_length is {length}, but model.max_position_embeddings is {limit}; "
            "remedy: shorten the one or raise the other"
            for path, length in lengths.items()
            if length > limit
        ]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        faults = self.length_faults()
        if self.pretrain.init_from and "tokenizer" in self.model_fields_set:
            faults.append(
                "tokenizer has no effect beside pretrain.init_from, whose vocabulary is kept; remedy: remove it"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self
