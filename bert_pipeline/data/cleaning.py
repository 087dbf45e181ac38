def apply_rules(texts, rules):
    return tuple(texts), []
