-- Commands that a device has not replied to. They are given again when it comes back: a broker that was started anew holds
-- nothing for it.
CREATE TABLE commands (
    device   TEXT NOT NULL REFERENCES devices (id),
    id       TEXT NOT NULL,
    -- What to do, as JSON.
    body     TEXT NOT NULL,
    -- When nobody waits for it any more.
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (device, id)
) STRICT, WITHOUT ROWID;
