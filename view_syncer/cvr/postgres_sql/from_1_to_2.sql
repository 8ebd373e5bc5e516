-- Version 1 had no version row and other names. Its queries said whether they were got, not when:
-- the version of the group is the latest that can be, and nobody below it is caught up.
ALTER TABLE {schema}.groups RENAME TO view_groups;
ALTER TABLE {schema}.clients RENAME TO view_clients;
ALTER TABLE {schema}.queries RENAME TO view_queries;
ALTER TABLE {schema}.desires RENAME TO view_desires;
ALTER TABLE {schema}.view_clients DROP CONSTRAINT "clients_clientGroupID_fkey";
ALTER TABLE {schema}.view_queries DROP CONSTRAINT "queries_clientGroupID_fkey";
ALTER TABLE {schema}.view_desires DROP CONSTRAINT "desires_clientGroupID_fkey";
ALTER INDEX {schema}.groups_pkey RENAME TO view_groups_pkey;
ALTER INDEX {schema}.clients_pkey RENAME TO view_clients_pkey;
ALTER INDEX {schema}.queries_pkey RENAME TO view_queries_pkey;
ALTER INDEX {schema}.desires_pkey RENAME TO view_desires_pkey;
DROP INDEX {schema}.groups_last_active;
ALTER TABLE {schema}.view_groups
    ALTER COLUMN "lastActive" DROP DEFAULT,
    ADD COLUMN term bigint NOT NULL DEFAULT 0,
    ADD COLUMN issuers json NOT NULL DEFAULT '{{}}',
    ADD COLUMN "provableState" text COLLATE "C" NOT NULL DEFAULT '00',
    ADD COLUMN "provableConfig" bigint NOT NULL DEFAULT 0,
    ADD COLUMN "deletedAt" timestamptz;
CREATE INDEX view_groups_last_active ON {schema}.view_groups ("lastActive")
 WHERE "deletedAt" IS NULL;
CREATE INDEX view_groups_deleted_at ON {schema}.view_groups ("deletedAt")
 WHERE "deletedAt" IS NOT NULL;
UPDATE {schema}.view_groups
   SET "provableState" = "stateVersion", "provableConfig" = "configVersion";
ALTER TABLE {schema}.view_queries
    ADD COLUMN "gotState" text COLLATE "C",
    ADD COLUMN "gotConfig" bigint;
UPDATE {schema}.view_queries q
   SET "gotState" = g."stateVersion", "gotConfig" = g."configVersion"
  FROM {schema}.view_groups g
 WHERE g."clientGroupID" = q."clientGroupID" AND q.got;
ALTER TABLE {schema}.view_queries DROP COLUMN got;
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
