"""Labels: feedback joined with the predictions it speaks of, exactly once, however late, early, repeated or revised it comes.

In the order of one feedback's way: `record` (what came in, decoded), `lookup` (which prediction it means), `revisions` (whether it says
anything new), `outcomes` (the rows that go out, with their losses), `waiting` (what was not found yet), `progress` (how far
ClickHouse is complete), `service` (the loop that moves it all in transactions).
"""
