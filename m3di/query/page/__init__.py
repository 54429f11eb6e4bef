"""The page that shows a store: one answer in a file of its own, or any number of them by `m3di.query.serve`.

Both show what `contents` gives through the same script, in `static`.
"""
