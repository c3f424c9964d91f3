-- Programs of the agent, and which of them devices are to run.

CREATE TABLE programs (
    model      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    -- Lower-case hex; the program itself lies with the blobs.
    sha256     TEXT NOT NULL,
    length     INTEGER NOT NULL,
    -- dunlin_protocol::ProgramCustom.
    custom     TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (model, version),
    UNIQUE (model, sha256)
) STRICT, WITHOUT ROWID;

-- One order a line and group; the empty group stands for every device.
CREATE TABLE program_orders (
    model    TEXT NOT NULL,
    grp      TEXT NOT NULL,
    version  INTEGER NOT NULL,
    -- Devices that take it before all others.
    canaries INTEGER NOT NULL,
    reach_ms INTEGER NOT NULL,
    made_by  TEXT NOT NULL,
    made_ms  INTEGER NOT NULL,
    PRIMARY KEY (model, grp),
    FOREIGN KEY (model, version) REFERENCES programs (model, version)
) STRICT, WITHOUT ROWID;
