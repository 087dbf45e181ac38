"""When Dagster rebuilds an asset automatically, and when an asset counts as stale.

Cheap assets follow new content: Dagster rebuilds `contamination`, `nsp_dataset` and `masked_dataset` when the data
version of one of their inputs changes and all blocking checks of the inputs pass. The tokenizer and everything after
the datasets have no condition, because it would spend GPU hours without a person's decision. If a condition is
evaluated between two stages of a run, it may request an asset that this run is about to build: the second build finds
the artifact and ends at once. Nothing is evaluated before the sensor `new_content` (automation/schedules.py) is on.
"""

from datetime import timedelta

import dagster as dg

# Dagster's `eager` also fires when an existing artifact is materialized again, and ignores checks of earlier runs.
ON_NEW_CONTENT = (
    dg.AutomationCondition.eager().replace(
        "any_deps_updated", dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    )
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("on_new_content")

FRESH_WITHIN_A_WEEK = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=8),
    fail_window=timedelta(days=31),
)
"""Passes if the asset was materialized for any recipe within the window, even when nothing new was found."""
