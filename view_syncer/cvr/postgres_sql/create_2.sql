-- Tables of the view records, version 2. "C" collation: versions compare as bytes. The names are
-- none of those the reference server has in a schema of the same name.
CREATE TABLE {schema}.view_groups (
    "clientGroupID"  text PRIMARY KEY,
    "stateVersion"   text COLLATE "C" NOT NULL,
    "configVersion"  bigint NOT NULL,
    "clientSchema"   json,
    "profileID"      text,
    "replicaVersion" text COLLATE "C",
    "ttlClock"       double precision NOT NULL DEFAULT 0,
    "lastActive"     timestamptz NOT NULL,
    term             bigint NOT NULL DEFAULT 0,
    issuers          json NOT NULL DEFAULT '{{}}',
    "provableState"  text COLLATE "C" NOT NULL DEFAULT '00',
    "provableConfig" bigint NOT NULL DEFAULT 0,
    "deletedAt"      timestamptz
);
CREATE INDEX view_groups_last_active ON {schema}.view_groups ("lastActive")
 WHERE "deletedAt" IS NULL;
CREATE INDEX view_groups_deleted_at ON {schema}.view_groups ("deletedAt")
 WHERE "deletedAt" IS NOT NULL;
-- No foreign keys: the parts of a group are only ever written together with its row.
CREATE TABLE {schema}.view_clients (
    "clientGroupID" text NOT NULL,
    "clientID"      text NOT NULL,
    PRIMARY KEY ("clientGroupID", "clientID")
);
CREATE TABLE {schema}.view_queries (
    "clientGroupID" text NOT NULL,
    "queryHash"     text NOT NULL,
    ast             json,
    name            text,
    args            json,
    "gotState"      text COLLATE "C",
    "gotConfig"     bigint,
    PRIMARY KEY ("clientGroupID", "queryHash")
);
CREATE TABLE {schema}.view_desires (
    "clientGroupID"   text NOT NULL,
    "clientID"        text NOT NULL,
    "queryHash"       text NOT NULL,
    "ttlMs"           double precision NOT NULL,
    "inactivatedAtMs" double precision,
    PRIMARY KEY ("clientGroupID", "clientID", "queryHash")
);
CREATE TABLE {schema}.fact_authors (
    author       text PRIMARY KEY,
    "completeTo" text COLLATE "C" NOT NULL,
    "lastActive" timestamptz NOT NULL
);
CREATE TABLE {schema}.fact_checkpoints (
    author  text NOT NULL,
    unit    text NOT NULL,
    version text COLLATE "C" NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (author, unit)
);
CREATE TABLE {schema}.fact_deltas (
    author  text NOT NULL,
    unit    text NOT NULL,
    version text COLLATE "C" NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (author, unit, version)
);
-- One row: the version of these tables, and which worker purges them until when.
CREATE TABLE {schema}.view_meta (
    version       integer NOT NULL,
    reaper        text,
    "reaperUntil" timestamptz
);
INSERT INTO {schema}.view_meta (version) VALUES (2);
