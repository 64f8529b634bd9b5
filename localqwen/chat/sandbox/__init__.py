"""Where a model's chat template runs: jinja2's immutable sandbox, and limits of what a template may make and how long.

A template comes with a model file and is a program of whoever made the file. The sandbox keeps it from everything but
its own data. The limits keep it from holding the interpreter: `time_limit` interrupts Python code only, so no single
operation may take long. Hence nothing is computed while a template is compiled, every operation of a template is
checked before it is carried out (`operators`, `methods`, `filters`), and containers are weighed before C code walks
them (`budget`). Templates that are no attack render as in transformers.
"""
