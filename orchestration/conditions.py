"""When an asset is made by itself, and when it counts as old.

What is cheap follows new content: `contamination`, `nsp_dataset` and `masked_dataset` are made again when the data
version of something that they are made from changes, and only while all blocking checks of that pass. The tokenizer
and what comes after the datasets have no condition: a condition would spend hours of GPUs without being asked.
Where an evaluation falls between two stages of a run, it may ask for what that run makes just then: the second finds
it standing, and ends at once. Nothing is evaluated before the sensor `new_content` (automation.py) is switched on.
"""

from datetime import timedelta

import dagster as dg

# Dagster's `eager` fires on every materialization, also of what stood already, and knows no gates beyond one run.
ON_NEW_CONTENT = (
    dg.AutomationCondition.eager().replace(
        "any_deps_updated", dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    )
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("on_new_content")

LOOKED_AT_EVERY_WEEK = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(days=8),
    fail_window=timedelta(days=31),
)
"""Some recipe's was materialized in this time, which also holds where nothing new was found to build it from."""
