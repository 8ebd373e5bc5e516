-- Tables of the client view records. "C" collation: versions compare as bytes.
CREATE TABLE IF NOT EXISTS {schema}.groups (
    "clientGroupID"  text PRIMARY KEY,
    "stateVersion"   text COLLATE "C" NOT NULL,
    "configVersion"  bigint NOT NULL,
    "clientSchema"   json,
    "profileID"      text,
    "replicaVersion" text COLLATE "C",
    "ttlClock"       double precision NOT NULL DEFAULT 0,
    "lastActive"     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS groups_last_active ON {schema}.groups ("lastActive");
CREATE TABLE IF NOT EXISTS {schema}.clients (
    "clientGroupID" text NOT NULL REFERENCES {schema}.groups ON DELETE CASCADE,
    "clientID"      text NOT NULL,
    PRIMARY KEY ("clientGroupID", "clientID")
);
CREATE TABLE IF NOT EXISTS {schema}.queries (
    "clientGroupID" text NOT NULL REFERENCES {schema}.groups ON DELETE CASCADE,
    "queryHash"     text NOT NULL,
    ast             json,
    name            text,
    args            json,
    got             boolean NOT NULL,
    PRIMARY KEY ("clientGroupID", "queryHash")
);
CREATE TABLE IF NOT EXISTS {schema}.desires (
    "clientGroupID"   text NOT NULL REFERENCES {schema}.groups ON DELETE CASCADE,
    "clientID"        text NOT NULL,
    "queryHash"       text NOT NULL,
    "ttlMs"           double precision NOT NULL,
    "inactivatedAtMs" double precision,
    PRIMARY KEY ("clientGroupID", "clientID", "queryHash")
);
