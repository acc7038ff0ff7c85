-- A merge of more than 131,072 rows was vertical: the key's columns first, then each other column for itself, which reads each part once a column.
-- Of parts that are one file (migration 0014) that is two fifths more of ClickHouse's CPU for each row that is inserted. Vertical merges are
-- for parts whose open files would take too much memory: from 1 GiB on (before compression), for all parts together.
ALTER TABLE internal.observations MODIFY SETTING vertical_merge_algorithm_min_bytes_to_activate = 1073741824;
ALTER TABLE internal.prediction_lookup MODIFY SETTING vertical_merge_algorithm_min_bytes_to_activate = 1073741824;
