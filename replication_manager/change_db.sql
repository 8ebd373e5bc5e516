-- Version 1 of what zerocache keeps in the schema {cdc} of the change database.
-- The first two tables are those of the reference server's change database (its version 6), with
-- columns of our own; its change log has another form and is left alone.

CREATE SCHEMA IF NOT EXISTS {cdc};

CREATE TABLE IF NOT EXISTS {cdc}."replicationConfig" (
    "replicaVersion" text NOT NULL,
    publications text[] NOT NULL,
    "resetRequired" bool,
    lock int PRIMARY KEY DEFAULT 1 CHECK (lock = 1)
);

CREATE TABLE IF NOT EXISTS {cdc}."replicationState" (
    "lastWatermark" text NOT NULL,
    owner text,
    "ownerAddress" text,
    lock int PRIMARY KEY DEFAULT 1 CHECK (lock = 1)
);

-- term: rises with every change of the owner; each write of a log names the term it belongs to.
-- floor: transactions after this one are all in the log. reached: upstream has nothing for us
-- between lastWatermark and here. Both are NULL in a log that the reference server left.
ALTER TABLE {cdc}."replicationState"
    ADD COLUMN IF NOT EXISTS term bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS floor pg_lsn,
    ADD COLUMN IF NOT EXISTS reached pg_lsn;

-- Parts of segments (replication_manager/segments.py). watermark: the last transaction in it.
CREATE TABLE {cdc}."changeSegments" (
    watermark text COLLATE "C" NOT NULL,
    term bigint NOT NULL,
    pos int NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (watermark, term, pos)
);

-- Compressing costs more than writing what is deleted a minute later.
ALTER TABLE {cdc}."changeSegments" ALTER data SET STORAGE EXTERNAL;
