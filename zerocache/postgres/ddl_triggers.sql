-- The event triggers of a shard; only superusers (or a provider's equivalent) may create them.
DROP EVENT TRIGGER IF EXISTS {start};
DROP EVENT TRIGGER IF EXISTS {end};
DROP EVENT TRIGGER IF EXISTS {rewrite};
CREATE EVENT TRIGGER {start} ON ddl_command_start
    WHEN TAG IN ({start_tags}) EXECUTE FUNCTION {shard}.on_ddl_start();
CREATE EVENT TRIGGER {rewrite} ON table_rewrite EXECUTE FUNCTION {shard}.on_table_rewrite();
CREATE EVENT TRIGGER {end} ON ddl_command_end
    WHEN TAG IN ({end_tags}) EXECUTE FUNCTION {shard}.on_ddl_end();
