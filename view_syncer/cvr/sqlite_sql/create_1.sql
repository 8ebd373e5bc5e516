-- Tables of the view records, version 1; the same as in PostgreSQL. Times are Unix seconds.
CREATE TABLE view_groups (
    "clientGroupID"  TEXT PRIMARY KEY,
    "stateVersion"   TEXT NOT NULL,
    "configVersion"  INTEGER NOT NULL,
    "clientSchema"   TEXT,
    "profileID"      TEXT,
    "replicaVersion" TEXT,
    "ttlClock"       REAL NOT NULL,
    "provableState"  TEXT NOT NULL,
    "provableConfig" INTEGER NOT NULL,
    takeovers        TEXT NOT NULL,
    "lastActive"     REAL NOT NULL,
    "deletedAt"      REAL
) STRICT;
CREATE INDEX view_groups_last_active ON view_groups ("lastActive") WHERE "deletedAt" IS NULL;
CREATE INDEX view_groups_deleted_at ON view_groups ("deletedAt") WHERE "deletedAt" IS NOT NULL;
CREATE TABLE view_clients (
    "clientGroupID" TEXT NOT NULL,
    "clientID"      TEXT NOT NULL,
    PRIMARY KEY ("clientGroupID", "clientID")
) STRICT, WITHOUT ROWID;
CREATE TABLE view_queries (
    "clientGroupID" TEXT NOT NULL,
    "queryHash"     TEXT NOT NULL,
    ast             TEXT,
    name            TEXT,
    args            TEXT,
    "gotState"      TEXT,
    "gotConfig"     INTEGER,
    unit            TEXT,
    PRIMARY KEY ("clientGroupID", "queryHash")
) STRICT;
CREATE TABLE view_desires (
    "clientGroupID"   TEXT NOT NULL,
    "clientID"        TEXT NOT NULL,
    "queryHash"       TEXT NOT NULL,
    "ttlMs"           REAL NOT NULL,
    "inactivatedAtMs" REAL,
    PRIMARY KEY ("clientGroupID", "clientID", "queryHash")
) STRICT, WITHOUT ROWID;
CREATE TABLE fact_authors (
    author       INTEGER PRIMARY KEY AUTOINCREMENT,
    "completeTo" TEXT NOT NULL,
    "lastActive" REAL NOT NULL
) STRICT;
CREATE TABLE fact_checkpoints (
    author  INTEGER NOT NULL,
    unit    TEXT NOT NULL,
    version TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (author, unit)
) STRICT;
CREATE TABLE fact_deltas (
    author  INTEGER NOT NULL,
    unit    TEXT NOT NULL,
    version TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (author, unit, version)
) STRICT;
-- One row: the version of these tables, whose records these are, and which worker purges them
-- until when.
CREATE TABLE view_meta (
    version       INTEGER NOT NULL,
    schema        TEXT NOT NULL,
    reaper        TEXT,
    "reaperUntil" REAL
) STRICT;
