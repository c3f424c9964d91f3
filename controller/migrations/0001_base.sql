-- Devices, what they say, and who did what. Times are Unix milliseconds. Ids are text as in the protocol.

CREATE TABLE devices (
    id              TEXT PRIMARY KEY,
    -- Public key, SubjectPublicKeyInfo in DER; what envelopes and broker challenges are checked with.
    spki            BLOB NOT NULL,
    -- Lower-case hex SHA-256 of spki.
    key_id          TEXT NOT NULL,
    certificate_pem TEXT NOT NULL,
    -- dunlin_protocol::DeviceProfile as JSON.
    profile         TEXT NOT NULL,
    class           TEXT NOT NULL,
    state           TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'retired', 'revoked')),
    enrolled_ms     INTEGER NOT NULL,
    online          INTEGER NOT NULL DEFAULT 0,
    -- Session epoch of the last status.
    epoch           INTEGER NOT NULL DEFAULT 0,
    agent           TEXT NOT NULL DEFAULT '',
    seen_ms         INTEGER NOT NULL DEFAULT 0,
    -- Generation of the last assignment the device says it verified.
    generation      INTEGER NOT NULL DEFAULT 0,
    -- Last counter used in a down message.
    down_seq        INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE groups (
    id         TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE device_groups (
    device TEXT NOT NULL REFERENCES devices (id),
    grp    TEXT NOT NULL REFERENCES groups (id),
    PRIMARY KEY (device, grp)
) STRICT, WITHOUT ROWID;

CREATE TABLE claims (
    id          TEXT PRIMARY KEY,
    -- SHA-256 of the secret; the secret itself is shown once and never stored.
    secret_hash BLOB NOT NULL UNIQUE,
    -- Id the device will get, if the operator fixed one.
    device      TEXT,
    groups      TEXT NOT NULL DEFAULT '[]',
    created_by  TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    used_ms     INTEGER,
    used_by     TEXT
) STRICT;

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL UNIQUE,
    -- Comma-separated scopes.
    scopes     TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    revoked_ms INTEGER
) STRICT;

-- One row per agent start; records count within it.
CREATE TABLE boots (
    no             INTEGER PRIMARY KEY,
    device         TEXT NOT NULL REFERENCES devices (id),
    boot           BLOB NOT NULL,
    -- Last number of the unbroken run from 1 that is stored or declared lost.
    upto           INTEGER NOT NULL DEFAULT 0,
    -- Ranges beyond upto that are stored: pairs of varints.
    ahead          BLOB NOT NULL DEFAULT x'',
    first_ms       INTEGER NOT NULL,
    last_ms        INTEGER NOT NULL,
    -- Epoch of this boot's last session; two boots whose epochs interleave are two devices with one key.
    epoch          INTEGER NOT NULL DEFAULT 0,
    -- Highest count of windows closed that the agent reported.
    windows_closed INTEGER NOT NULL DEFAULT 0,
    windows_stored INTEGER NOT NULL DEFAULT 0,
    records_lost   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (device, boot)
) STRICT;

CREATE TABLE windows (
    id          INTEGER PRIMARY KEY,
    boot_no     INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    device      TEXT NOT NULL,
    task        TEXT NOT NULL,
    -- name@version; NULL for the constant baseline.
    release     TEXT,
    generation  INTEGER NOT NULL,
    start_ms    INTEGER NOT NULL,
    end_ms      INTEGER NOT NULL,
    -- Whether start_ms and end_ms are wall times.
    wall        INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    probation   INTEGER NOT NULL,
    n           INTEGER NOT NULL,
    errors      INTEGER NOT NULL,
    labelled    INTEGER NOT NULL,
    correct     INTEGER NOT NULL,
    -- dunlin_protocol::Window, CBOR, the bytes the device signed.
    body        BLOB NOT NULL,
    UNIQUE (boot_no, seq)
) STRICT;
-- Rows arrive in about the order of received_ms, so this index grows at its end.
CREATE INDEX windows_by_task ON windows (task, received_ms);

CREATE TABLE outcomes (
    id          INTEGER PRIMARY KEY,
    device      TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    task        TEXT,
    release     TEXT,
    correlation TEXT NOT NULL,
    phase       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    at_ms       INTEGER,
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX outcomes_by_device ON outcomes (device, received_ms);
CREATE INDEX outcomes_by_release ON outcomes (release, phase);

CREATE TABLE installed (
    device      TEXT NOT NULL,
    task        TEXT NOT NULL,
    release     TEXT,
    manifest    BLOB,
    phase       TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    proof_us    INTEGER,
    proof_bytes INTEGER,
    updated_ms  INTEGER NOT NULL,
    PRIMARY KEY (device, task)
) STRICT, WITHOUT ROWID;

CREATE TABLE indicators (
    id          INTEGER PRIMARY KEY,
    device      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    count       INTEGER NOT NULL,
    at_ms       INTEGER,
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX indicators_by_device ON indicators (device, received_ms);

CREATE TABLE gaps (
    id          INTEGER PRIMARY KEY,
    device      TEXT NOT NULL,
    boot        BLOB NOT NULL,
    first_seq   INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE replies (
    id          TEXT NOT NULL,
    device      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (device, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE samples (
    id            INTEGER PRIMARY KEY,
    task          TEXT NOT NULL,
    device        TEXT NOT NULL,
    -- The device's request id.
    request       TEXT NOT NULL,
    release       TEXT NOT NULL,
    -- Features, f32 little-endian.
    x             BLOB NOT NULL,
    predicted     INTEGER NOT NULL,
    label         INTEGER,
    kind          TEXT NOT NULL,
    inclusion_ppm INTEGER NOT NULL,
    at_ms         INTEGER,
    received_ms   INTEGER NOT NULL,
    UNIQUE (device, task, request)
) STRICT;
CREATE INDEX samples_by_task ON samples (task, received_ms);

-- What the controller noticed by itself: clones, drift, silent devices.
CREATE TABLE alerts (
    id         INTEGER PRIMARY KEY,
    kind       TEXT NOT NULL,
    -- What it is about: device:x, task:y, release:z.
    subject    TEXT NOT NULL,
    detail     TEXT NOT NULL,
    -- Further facts, JSON.
    facts      TEXT NOT NULL DEFAULT '{}',
    raised_ms  INTEGER NOT NULL,
    cleared_ms INTEGER
) STRICT;
-- One open alert per kind and subject.
CREATE UNIQUE INDEX alerts_open ON alerts (kind, subject) WHERE cleared_ms IS NULL;

-- Messages that were not stored, by cause; device '' when it is not known who sent them.
CREATE TABLE refused (
    device  TEXT NOT NULL,
    reason  TEXT NOT NULL,
    count   INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    detail  TEXT NOT NULL,
    PRIMARY KEY (device, reason)
) STRICT, WITHOUT ROWID;

-- Append-only: each row's hash covers the one before.
CREATE TABLE audit (
    no     INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    who    TEXT NOT NULL,
    what   TEXT NOT NULL,
    before TEXT NOT NULL,
    after  TEXT NOT NULL,
    hash   BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are never changed'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'audit rows are never deleted'); END;
