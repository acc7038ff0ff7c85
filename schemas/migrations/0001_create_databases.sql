-- `internal` holds tables as they are written; analysts read the views in `default` and, per model, in `models`.
CREATE DATABASE IF NOT EXISTS internal COMMENT 'Tables as the sink writes them; ask the views in default and models instead';
CREATE DATABASE IF NOT EXISTS models COMMENT 'One view per model, its features under their own names';
