from bert_pipeline.settings import set_numba_cache

set_numba_cache()
