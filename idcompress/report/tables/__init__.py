"""The page's tables, made from what an evaluation wrote: a module each, and `table` and `values`, which they share."""
