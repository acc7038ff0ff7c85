"""Kafka → ClickHouse, each row exactly once, by a write-ahead insert plan.

Read in this order: `plan` (what is written down before an insert), `ranges` (what one insert holds), `tables` (which topic goes
where, and how), `partition` (the life of one partition, without I/O), `takeover` (how it begins), `inserts` (insert and count),
`pools` (inserts under way), `loop` (the shell that polls, commits and shuts down), `service` (the process).

The order of one range's steps, which nothing may change:

1. Its first offset is committed to the consumer group, with the plan (topic UUID, end offset, rows) as the commit's metadata.
2. It is inserted as one block with the deduplication token `topic_id:partition:first-last`.
3. The next range's plan confirms it; if none comes within half a second, its end offset is committed with an empty plan.

Whoever dies between two of these steps leaves a plan; whoever takes the partition over reads it, consumes exactly that range
again, looks whether ClickHouse has it, and inserts it with the same token if not.
"""
