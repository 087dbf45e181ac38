"""`python -m bert_pipeline.cli` is `bert-pipeline`."""

import sys

from bert_pipeline.cli import main

sys.exit(main())
