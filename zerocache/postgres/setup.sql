-- The objects of one app and shard; running it again changes nothing.
-- Placeholders in braces are identifiers, filled in by setup.py.

CREATE SCHEMA IF NOT EXISTS {app};

CREATE TABLE IF NOT EXISTS {app}.permissions (
    permissions jsonb,
    hash text,
    lock bool PRIMARY KEY DEFAULT true CHECK (lock)
);

CREATE OR REPLACE FUNCTION {app}.set_permissions_hash() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.hash := md5(NEW.permissions::text);
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER on_set_permissions
    BEFORE INSERT OR UPDATE ON {app}.permissions
    FOR EACH ROW EXECUTE FUNCTION {app}.set_permissions_hash();

INSERT INTO {app}.permissions (permissions) VALUES (NULL) ON CONFLICT DO NOTHING;

CREATE SCHEMA IF NOT EXISTS {shard};

-- Written by the application in the transaction of each mutation.
CREATE TABLE IF NOT EXISTS {shard}.clients (
    "clientGroupID" text NOT NULL,
    "clientID" text NOT NULL,
    "lastMutationID" bigint NOT NULL,
    "userID" text,
    PRIMARY KEY ("clientGroupID", "clientID")
);

CREATE TABLE IF NOT EXISTS {shard}.mutations (
    "clientGroupID" text NOT NULL,
    "clientID" text NOT NULL,
    "mutationID" bigint NOT NULL,
    result json NOT NULL,
    PRIMARY KEY ("clientGroupID", "clientID", "mutationID")
);

CREATE TABLE IF NOT EXISTS {shard}."shardConfig" (
    publications text[] NOT NULL,
    "ddlDetection" bool NOT NULL,
    lock bool PRIMARY KEY DEFAULT true CHECK (lock)
);

-- What the functions of ddl_functions.sql saw last.
CREATE TABLE IF NOT EXISTS {shard}."publishedSchema" (
    current json NOT NULL,
    "exists" bool PRIMARY KEY DEFAULT true CHECK ("exists")
);

-- One row per initial sync; "initialSyncContext" IS NULL until it has finished.
CREATE TABLE IF NOT EXISTS {shard}.replicas (
    id text PRIMARY KEY,
    rank bigserial,
    slot text NOT NULL,
    version text NOT NULL,
    "initialSchema" json,
    "initialSyncContext" json,
    "subscriberContext" json
);

CREATE TABLE IF NOT EXISTS {shard}."versionHistory" (
    "dataVersion" int NOT NULL,
    "schemaVersion" int NOT NULL,
    "minSafeVersion" int NOT NULL,
    lock char(1) PRIMARY KEY DEFAULT 'v' CHECK (lock = 'v')
);
