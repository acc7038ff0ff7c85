"""The Faust worker: what every micro-batch says about metrics and drift, summed exactly once.

    observations, outcomes ─► measure (metrics, drift) ─► partials ─► merge (windows, inputs, losses) ─► metrics, drift, alerts

Read in this order: `metrics`, `drift`, `measure` (one source partition → partials), `windows`, `inputs`, `losses`, `merge` (partials of
all sources → evidence), `state` (how none of it is lost or counted twice), `app` (Faust), `service`.
"""
