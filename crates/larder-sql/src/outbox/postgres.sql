-- The outbox of larder, for writes that larder does not make itself: each statement that changes a table of the schema
-- public adds a row here, in its own transaction, and wakes the listeners when the transaction is committed.
--
-- Run this text again after tables were created or their keys changed. Existing rows remain.
SELECT pg_advisory_xact_lock(7810762);

-- The name must not be the name of a role, because "$user" comes first in the search path.
CREATE SCHEMA IF NOT EXISTS larder_outbox;

CREATE TABLE IF NOT EXISTS larder_outbox.line (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  relation text NOT NULL,
  keys jsonb, -- the keys of the rows, each an array of texts; null for any row
  columns jsonb, -- the columns that an UPDATE has changed; empty if rows were added or removed, null if unknown
  lookups jsonb, -- the values of the foreign keys and unique constraints of one column; null if unknown
  commit_id text -- the identity of the transaction, if larder itself invalidates after the commit
);
DO $larder$
BEGIN
  -- An outbox of an older version. The column is added only if it is missing, because that waits for all writers.
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'larder_outbox.line'::regclass AND attname = 'commit_id') THEN
    ALTER TABLE larder_outbox.line ADD COLUMN commit_id text;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'larder_outbox.line'::regclass AND attname = 'lookups') THEN
    ALTER TABLE larder_outbox.line ADD COLUMN columns jsonb, ADD COLUMN lookups jsonb;
  END IF;
END $larder$;
CREATE INDEX IF NOT EXISTS line_by_xid ON larder_outbox.line (xid);
CREATE INDEX IF NOT EXISTS line_by_at ON larder_outbox.line (at);

-- Read positions that processes share. The empty text means that there is no position yet.
CREATE TABLE IF NOT EXISTS larder_outbox.reader (
  name text PRIMARY KEY,
  seen text NOT NULL DEFAULT '',
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The arguments are the columns of the primary key, if the table has a primary key.
CREATE OR REPLACE FUNCTION larder_outbox.note() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
-- Keys are written in the form that tags have.
SET datestyle = 'ISO, YMD' SET bytea_output = 'hex' SET extra_float_digits = 1 AS $larder$
DECLARE
  most CONSTANT int := 64; -- up to twice as many keys; if there are more, the outbox row means any row
  -- Null if a column of the key was renamed. Uses concat, because a cast may call a user-defined function.
  key text := (SELECT string_agg(format('concat(%I)', c), ', ' ORDER BY n)
    FROM unnest(TG_ARGV) WITH ORDINALITY AS k (c, n)
    JOIN pg_attribute a ON a.attrelid = TG_RELID AND a.attname = c AND NOT a.attisdropped
    HAVING count(*) = TG_NARGS);
  changed text := CASE TG_OP
    WHEN 'INSERT' THEN 'SELECT jsonb_build_array(%1$s) AS k FROM larder_new'
    WHEN 'DELETE' THEN 'SELECT jsonb_build_array(%1$s) AS k FROM larder_old'
    WHEN 'UPDATE' THEN 'SELECT jsonb_build_array(%1$s) AS k FROM larder_new
      UNION ALL SELECT jsonb_build_array(%1$s) FROM larder_old' END;
  source text := CASE TG_OP
    WHEN 'INSERT' THEN 'larder_new'
    WHEN 'DELETE' THEN 'larder_old'
    WHEN 'UPDATE' THEN '(SELECT * FROM larder_new UNION ALL SELECT * FROM larder_old)' END;
  -- The values of the foreign keys and unique constraints of one column.
  looked_up text := (SELECT string_agg(format(
      '(%L::text, (SELECT jsonb_agg(k) FROM (SELECT DISTINCT concat(%I) COLLATE "C" AS k FROM %s r WHERE %I IS NOT NULL LIMIT %s) v))',
      a.attname, a.attname, source, a.attname, 2 * most + 1), ', ')
    FROM (SELECT DISTINCT conkey[1] AS attnum FROM pg_constraint
      WHERE conrelid = TG_RELID AND contype IN ('f', 'u') AND array_length(conkey, 1) = 1) f
    JOIN pg_attribute a ON a.attrelid = TG_RELID AND a.attnum = f.attnum);
  -- The columns of which a value differs, as text, in rows with the same key. The collation of a column may treat two
  -- different texts as equal. Large bytes would be too long as text.
  comparing text := (SELECT string_agg(format(
      'CASE WHEN bool_or((o.%1$I IS NULL) <> (n.%1$I IS NULL) OR ' || CASE a.atttypid
        WHEN 'bytea'::regtype THEN 'o.%1$I <> n.%1$I'
        ELSE 'concat(o.%1$I) COLLATE "C" <> concat(n.%1$I) COLLATE "C"' END || ') THEN %1$L END',
      a.attname), ', ')
    FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped);
  -- As text, because the type of a key may have no operator that this function may call.
  joining text := (SELECT string_agg(format('concat(o.%1$I) COLLATE "C" = concat(n.%1$I) COLLATE "C"', c), ' AND ') FROM unnest(TG_ARGV) c);
  counted bigint;
  found jsonb;
  lookups_found jsonb;
  changes jsonb;
BEGIN
  -- larder stores no query that reads a table which has moved to another schema.
  IF TG_TABLE_SCHEMA <> 'public' THEN RETURN NULL; END IF;
  IF TG_OP <> 'TRUNCATE' THEN
    EXECUTE format('SELECT count(*), jsonb_agg(DISTINCT k) FROM (SELECT * FROM (' || changed || ') r LIMIT %2$s) q',
      coalesce(key, ''), 2 * most + 1) INTO counted, found;
    IF counted = 0 THEN RETURN NULL; END IF;
    IF key IS NULL OR counted > 2 * most THEN found := NULL; END IF;
    -- Not one call of jsonb_build_object, because a function has at most 100 arguments.
    lookups_found := '{}';
    IF looked_up IS NOT NULL THEN
      EXECUTE 'SELECT jsonb_object_agg(c, v) FROM (VALUES ' || looked_up || ') l (c, v)' INTO lookups_found;
    END IF;
    changes := '[]';
    IF TG_OP = 'UPDATE' THEN
      -- Without a key, with many rows, or if a key has changed, any column may have changed.
      IF found IS NULL OR joining IS NULL THEN changes := NULL;
      ELSE
        EXECUTE 'SELECT CASE WHEN count(*) = (SELECT count(*) FROM larder_new)
            THEN to_jsonb(array_remove(ARRAY[' || comparing || '], NULL)) END
          FROM larder_old o JOIN larder_new n ON ' || joining INTO changes;
      END IF;
    END IF;
  END IF;
  INSERT INTO larder_outbox.line (relation, keys, columns, lookups, commit_id)
    VALUES (TG_TABLE_NAME, found, changes, lookups_found, nullif(current_setting('larder.commit', true), ''));
  -- Wakes the readers. A reader that misses the notification reads a second later.
  PERFORM pg_notify('larder', '');
  RETURN NULL;
END $larder$;
REVOKE ALL ON FUNCTION larder_outbox.note() FROM PUBLIC;

-- The rows that the current transaction has added, so that it can invalidate by them when it is committed.
CREATE OR REPLACE FUNCTION larder_outbox.own() RETURNS TABLE (relation text, lookups jsonb)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $larder$
  SELECT l.relation, l.lookups FROM larder_outbox.line l WHERE l.xid = pg_current_xact_id_if_assigned();
$larder$;

-- Adds a domain event to the outbox of the current transaction.
CREATE OR REPLACE FUNCTION larder_outbox.event(name text, body text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $larder$
  INSERT INTO larder_outbox.line (relation, keys) VALUES ('larder event ' || name, body::jsonb);
  SELECT pg_notify('larder', '');
$larder$;

DO $larder$
DECLARE
  watched record;
BEGIN
  FOR watched IN
    SELECT c.oid::regclass AS relation, coalesce(string_agg(quote_literal(a.attname), ', ' ORDER BY u.at), '') AS key
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p'
    LEFT JOIN LATERAL unnest(k.conkey) WITH ORDINALITY AS u (attnum, at) ON true
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.attnum
    WHERE c.relkind IN ('r', 'p') AND n.nspname = 'public'
    GROUP BY c.oid
    -- Replacing a trigger waits for all writers of its table, so triggers are only replaced if one has to change.
    HAVING 4 <> (
      SELECT count(*) FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace
      WHERE t.tgrelid = c.oid AND pn.nspname = 'larder_outbox' AND p.proname = 'note' AND t.tgenabled <> 'D'
        AND t.tgargs = coalesce(string_agg(convert_to(a.attname, 'UTF8') || '\x00'::bytea, ''::bytea ORDER BY u.at), ''))
  LOOP
    EXECUTE format('CREATE OR REPLACE TRIGGER larder_insert AFTER INSERT ON %s
      REFERENCING NEW TABLE AS larder_new FOR EACH STATEMENT EXECUTE FUNCTION larder_outbox.note(%s)', watched.relation, watched.key);
    EXECUTE format('CREATE OR REPLACE TRIGGER larder_update AFTER UPDATE ON %s
      REFERENCING NEW TABLE AS larder_new OLD TABLE AS larder_old
      FOR EACH STATEMENT EXECUTE FUNCTION larder_outbox.note(%s)', watched.relation, watched.key);
    EXECUTE format('CREATE OR REPLACE TRIGGER larder_delete AFTER DELETE ON %s
      REFERENCING OLD TABLE AS larder_old FOR EACH STATEMENT EXECUTE FUNCTION larder_outbox.note(%s)', watched.relation, watched.key);
    EXECUTE format('CREATE OR REPLACE TRIGGER larder_truncate AFTER TRUNCATE ON %s
      FOR EACH STATEMENT EXECUTE FUNCTION larder_outbox.note(%s)', watched.relation, watched.key);
  END LOOP;
END $larder$;
