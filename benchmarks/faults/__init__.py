"""The fault harness: load runs while seeded faults hit every part and every link; afterwards each event is accounted for.

Read in this order: `schedule` (which faults, as data), `world` (the stack and its links), `proxy` (how a link breaks), `actions`
(what a fault does and how it ends), `load` (what is sent, and what must come of it), `monitor` (recovery, memory),
`truth` (what is right), `verify` (the account: `answers`, `observed`, `copies`, `letters`, `outcomes`, `orders`), `report`, `command`. `mutant` and `bugs/` check the checker.
"""
