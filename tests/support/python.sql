CREATE TABLE credential_metadata (
    namespace TEXT NOT NULL, key TEXT NOT NULL,
    delivery_mode TEXT NOT NULL DEFAULT 'executor_only',
    allowed_consumers TEXT NOT NULL DEFAULT '[]', env_name TEXT, validator_id TEXT,
    masked_preview TEXT NOT NULL DEFAULT '', created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    last_validated_at TEXT, last_used_at TEXT, PRIMARY KEY (namespace, key))
