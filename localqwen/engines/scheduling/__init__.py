"""What both engines decide alike, so that the same requests find the same tokens cached on either.

`slots` chooses the slot of a new run and whose cached keys and values it takes over, `passes` which ids are computed
next, `checks` refuses calls before any work. A pass is one computation over the weights. Nothing here computes, reads a
clock or knows a library.
"""

from localqwen.engines.scheduling.slots import common_prefix as common_prefix
