-- A part above 10 MiB had two files a column, ninety in all, and an insert of the sink makes one: creating, merging and deleting them cost
-- the system as much as the insert cost ClickHouse. Up to 128 MiB (before compression) a part is one data file; merges make larger ones.
ALTER TABLE internal.observations MODIFY SETTING min_bytes_for_wide_part = 134217728;
