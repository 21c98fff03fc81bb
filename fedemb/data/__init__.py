"""From files to vocabularies and shards."""
