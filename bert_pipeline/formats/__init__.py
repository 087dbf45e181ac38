"""File formats of the artifacts that stages read and write: paths, schemas, readers and writers.

    raw_corpus/              {train,heldout}/shard-<key>.parquet, ...                one row per document (corpus.py)
    tokenizer/               tokenizer.json, tokenizer_config.json, vocab.txt        the vocabulary (tokenizer.py)
    nsp_dataset/             len-128/{train,heldout}/pass-000/shard-<key>.arrow      one row per pair (pairs.py)
    masked_dataset/          the same paths                                          the masks of each row (pairs.py)
    pretrained_checkpoint/   metrics.jsonl, ...                                      one row per log step (metrics.py)

tables.py names, writes and reads shard files. initial_model.py reads the Hugging Face model that continual pretraining
starts from.

A shard's key is a hash of the id of its first document, written as 15 hexadecimal digits. It names the shard in every
stage and seeds every draw, so the content of a shard does not depend on the number of other shards.
"""
