//! `dunlin init`: a data folder with the online keys, the certificate authority and a configuration.
//!
//! No key made here can approve a model: the keys of both roots and of image targets are made by the key
//! ceremony, elsewhere.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};

use crate::api::auth::Scope;
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::identity::{self, Identity, IdentityError};
use crate::store::{Store, StoreError, TokenRow};

/// File of the database within a data folder.
pub const DATABASE: &str = "dunlin.db";

/// Why a data folder can not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The folder is in use.
    #[error("{0} is not empty; give a new folder, or remove it if nothing in it is needed")]
    NotEmpty(PathBuf),
    /// A file or folder can not be made.
    #[error("could not make {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Keys of the repositories.
    #[error("could not make the online keys")]
    Keys(#[source] crate::keys::KeyError),
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `init` is told.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Host names and addresses of the server certificate, besides loopback.
    pub names: Vec<String>,
    /// Where the API listens, if not at the default.
    pub listen: Option<SocketAddr>,
    /// Where the broker listens, if not at the default.
    pub mqtt_listen: Option<SocketAddr>,
}

/// 256 random bits as text; what tokens and claims are made of.
pub fn secret() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).expect("the system gives randomness");
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

/// A short random id for rows that people name.
pub fn short_id() -> String {
    let mut bytes = [0; 5];
    SystemRandom::new().fill(&mut bytes).expect("the system gives randomness");
    data_encoding::HEXLOWER.encode(&bytes)
}

/// Makes the folder; returns the first administrator token, which is stored nowhere.
pub async fn init(data: &Path, options: &Options) -> Result<String, InitError> {
    let file = |path: &Path, source| InitError::File { path: path.to_owned(), source };
    std::fs::create_dir_all(data).map_err(|source| file(data, source))?;
    if std::fs::read_dir(data).map_err(|source| file(data, source))?.next().is_some() {
        return Err(InitError::NotEmpty(data.to_owned()));
    }
    restrict(data).map_err(|source| file(data, source))?;
    let tls = data.join("tls");
    std::fs::create_dir(&tls).map_err(|source| file(&tls, source))?;

    Identity::create(data, &options.names)?;
    crate::keys::create_online(data).map_err(InitError::Keys)?;

    let mut config = Config::default();
    config.api.listen = options.listen.unwrap_or(config.api.listen);
    config.mqtt.listen = options.mqtt_listen.unwrap_or(config.mqtt.listen);
    config.check()?;
    let text = toml::to_string(&config).expect("a configuration has a TOML form");
    let text = format!(
        "# Configuration of the Dunlin controller; every value here is the default or was given to `dunlin init`.\n\n{text}"
    );
    identity::write_private(&data.join("controller.toml"), text.as_bytes())?;

    let store = Store::open(&data.join(DATABASE)).await?;
    let token = secret();
    let row = TokenRow {
        id: short_id(),
        name: "admin".into(),
        scopes: BTreeSet::from([Scope::Admin]),
        created_ms: clock::wall_ms(),
        expires_ms: None,
        revoked_ms: None,
    };
    let audit = crate::audit::Audit::open(store.clone(), data, &Identity::open(data)?)?;
    let mut change = audit.begin().await?;
    Store::token_add(change.tx(), &row, &token).await?;
    let after = serde_json::json!({ "token": row.id });
    change.commit("init", "controller.init", serde_json::Value::Null, after).await?;
    store.close().await;
    Ok(token)
}

fn restrict(data: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700))
}
