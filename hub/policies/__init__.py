"""Policies that users write: ValidatingAdmissionPolicy and its binding, for API writes and for what edges write.

`expressions` compiles and evaluates CEL, `specs` reads and checks the objects, `matching` says whom a policy concerns, `decisions` judges one
attempt, and `watching` keeps all of it current for one replica. With `--source kubernetes` none of this is used: there the
API server applies its own policies to every write.
"""
