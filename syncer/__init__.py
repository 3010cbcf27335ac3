"""syncer: a file system that keeps a bounded part of a large collection on the local disk."""
