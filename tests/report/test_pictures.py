import matplotlib.image
import numpy as np
import pytest

from bert_pipeline.report import pictures

ROWS = [{"step": step, "loss": 8.0 - step / 100, "mlm_loss": 7.5 - step / 100, "nsp_loss": 0.7} for step in range(700)]
HELDOUT = [{"step": step, "heldout_mlm_loss": 7.0, "heldout_nsp_loss": 0.69} for step in (0, 350, 700)]


def pixels(png: bytes, tmp_path) -> np.ndarray:
    (tmp_path / "picture.png").write_bytes(png)
    return matplotlib.image.imread(tmp_path / "picture.png")


def test_curves_show_both_losses_and_stay_small(tmp_path):
    both = pictures.training_curves(ROWS + HELDOUT)
    assert len(both) < 70_000, "base64 adds a third, and 100 kB is what Dagster's database should hold"
    mlm_only = pictures.training_curves([{"step": row["step"], "mlm_loss": row["mlm_loss"]} for row in ROWS])
    assert pixels(both, tmp_path).shape[1] == 2 * pixels(mlm_only, tmp_path).shape[1]


def test_curves_of_a_long_training_stay_small_and_mark_skipped_steps(tmp_path):
    noise = np.random.default_rng(1).normal(size=(1000, 5)).cumsum(0).tolist()
    names = ("mlm_loss", "nsp_loss", "grad_norm", "tokens_per_second", "model_flops_utilization")
    rows = [{"step": n, "learning_rate": 1e-4} | dict(zip(names, each, strict=True)) for n, each in enumerate(noise)]
    quiet = pictures.training_curves(rows)
    assert len(quiet) < 75_000
    troubled = pictures.training_curves([*rows, {"step": 500, "skipped_steps": 1}])

    def grey(png: bytes) -> int:
        colours = pixels(png, tmp_path)[..., :3]
        return int((abs(colours - 0.8).max(-1) < 0.02).sum())

    assert grey(troubled) > grey(quiet) + 500


@pytest.mark.parametrize("rows", [[], [{"step": 1, "mlm_loss": float("nan")}]])
def test_a_training_with_few_metrics_has_a_picture_of_the_usual_size(rows, tmp_path):
    usual = pictures.training_curves([{"step": step, "mlm_loss": 8.0 - step} for step in (1, 2)])
    assert pixels(pictures.training_curves(rows), tmp_path).shape == pixels(usual, tmp_path).shape


def test_a_histogram_has_its_counts_as_areas(tmp_path):
    def ink(counts: list[int]) -> int:
        shown = pixels(pictures.histogram([0, 1, 2, 3], counts, xlabel="tokens", ylabel="rows"), tmp_path)
        return int((shown[..., 2] > shown[..., 0] + 0.2).sum())  # the bars are blue

    assert ink([4, 4, 4]) > 1.8 * ink([4, 1, 1])
    assert pictures.histogram([0, 1], [1], xlabel="a", ylabel="b") == pictures.histogram(
        [0, 1], [1], xlabel="a", ylabel="b"
    )


def test_bins_of_growing_width_get_a_logarithmic_axis(tmp_path):
    def columns(edges: list[int]) -> np.ndarray:
        """Pixels in each line of the picture's columns that the first bin alone paints."""
        counts = [1] + [0] * (len(edges) - 2)
        shown = pixels(pictures.histogram(edges, counts, xlabel="words", ylabel="documents"), tmp_path)
        return (shown[100, :, 2] > shown[100, :, 0] + 0.2).sum()

    assert columns([10, 20, 40, 80, 160]) == pytest.approx(columns([10, 20, 30, 40, 50]), rel=0.15)
    assert columns([0, 20, 40, 80, 160]) < columns([10, 20, 40, 80, 160]), "0 has no place there"


def test_growth_shows_its_points_and_its_line(tmp_path):
    def orange(exponent: float | None) -> int:
        image = pixels(pictures.growth([100, 200, 400], [50, 70, 100], exponent), tmp_path)
        return int((image[..., 0] - image[..., 2] > 0.3).sum())

    assert orange(0.5) > 200 and orange(None) == 0


def test_scores_are_drawn_with_published_scores(tmp_path):
    """A row for each task: more tasks, a taller picture; ours and the published marks have their colours."""
    of_model = {"score_mean": 0.8, "low": 0.78, "high": 0.82}
    task = {"pretrained": of_model, "random_init": of_model | {"score_mean": 0.6}, "measured": {"MiniLM": 0.7}}
    task["published"] = {"PubMedBERT": 0.9, "BioBERT": 0.88}
    few, many = (pictures.task_scores({f"task {n}": task for n in range(count)}) for count in (1, 13))
    assert len(many) < 30_000
    assert pixels(many, tmp_path).shape[0] > 2 * pixels(few, tmp_path).shape[0]
    alone = {name: value for name, value in task.items() if name != "random_init"}
    assert pictures.task_scores({"mine": alone}) != pictures.task_scores({"mine": task}), "no mark without a baseline"
    bare = pictures.task_scores({"mine": task | {"published": {}, "measured": {}}})

    def green(png: bytes) -> int:
        image = pixels(png, tmp_path)
        return int((image[..., 1] - np.maximum(image[..., 0], image[..., 2]) > 0.1).sum())

    assert green(many) > green(few) > green(bare) > 0, "PubMedBERT's mark: in the legend, and where it is published"


def test_arms_have_bars_and_all_but_the_reference_a_difference(tmp_path):
    score = {arm: pictures.Interval(0.8, 0.75, 0.85) for arm in ("plain", "muon", "both")}
    difference = {arm: pictures.Interval(0.02, -0.01, 0.05) for arm in ("muon", "both")}
    one = pixels(pictures.arm_scores({"GAD": score}, {"GAD": difference}), tmp_path)
    two = pixels(pictures.arm_scores({"GAD": score, "DDI": score}, {"GAD": difference, "DDI": difference}), tmp_path)
    assert two.shape[1] == one.shape[1] and two.shape[0] > 1.7 * one.shape[0]
    grey = abs(one[..., :3] - 0.6).max(-1) < 0.02
    blue = one[..., 2] > one[..., 0] + 0.2
    assert 1.7 * grey.sum() < blue.sum(), "the bar of the reference is grey, the two others are blue"


def test_each_seed_has_a_line_in_the_colour_of_its_arm():
    curve = ([0, 50, 100], [9.0, 7.0, 6.0])
    one, two = (
        pictures.losses_by_arm({"plain": [curve]}),
        pictures.losses_by_arm({"plain": [curve], "muon": [curve] * 2}),
    )
    assert one != two and len(two) < 40_000
