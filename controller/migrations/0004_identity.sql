-- Certificates of devices, admission by approval or serial list, and repeats of records.

-- Every certificate that was issued to a device.
CREATE TABLE certificates (
    -- Lower-case hex.
    serial     TEXT PRIMARY KEY,
    device     TEXT NOT NULL REFERENCES devices (id),
    key_id     TEXT NOT NULL,
    issued_ms  INTEGER NOT NULL,
    -- End of its validity.
    until_ms   INTEGER NOT NULL,
    -- When the key gave way to another one.
    revoked_ms INTEGER
) STRICT;
CREATE INDEX certificates_by_device ON certificates (device, issued_ms);

-- Tokens that many devices may come with: those on the list are admitted, the others wait for an operator.
CREATE TABLE batches (
    id          TEXT PRIMARY KEY,
    -- SHA-256 of the secret; the secret itself is shown once and never stored.
    secret_hash BLOB NOT NULL UNIQUE,
    groups      TEXT NOT NULL DEFAULT '[]',
    -- Devices that may wait for an operator.
    waiting_max INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL
) STRICT;

-- The serial list of a batch.
CREATE TABLE expected (
    batch      TEXT NOT NULL REFERENCES batches (id),
    serial     TEXT NOT NULL,
    -- Id the device gets.
    device     TEXT NOT NULL,
    groups     TEXT NOT NULL DEFAULT '[]',
    -- Key it must have, if that is known beforehand.
    key_id     TEXT,
    PRIMARY KEY (batch, serial),
    UNIQUE (batch, device)
) STRICT, WITHOUT ROWID;

-- Devices that came with a batch token, one row for each key.
CREATE TABLE admissions (
    id         TEXT PRIMARY KEY,
    batch      TEXT NOT NULL REFERENCES batches (id),
    key_id     TEXT NOT NULL,
    serial     TEXT,
    -- Id it asks for, or gets.
    device     TEXT NOT NULL,
    groups     TEXT NOT NULL DEFAULT '[]',
    class      TEXT NOT NULL,
    address    TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'approved', 'rejected', 'admitted')),
    asked_ms   INTEGER NOT NULL,
    decided_ms INTEGER,
    decided_by TEXT,
    UNIQUE (batch, key_id)
) STRICT;
-- A serial is admitted once.
CREATE UNIQUE INDEX admissions_by_serial ON admissions (batch, serial) WHERE serial IS NOT NULL AND state IN ('approved', 'admitted');

-- Records of a boot that came again after they were stored.
ALTER TABLE boots ADD COLUMN repeated INTEGER NOT NULL DEFAULT 0;
