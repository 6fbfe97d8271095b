//! The addresses of the servers, and the credentials of a user in one of four forms.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64ct::{Base64UrlUnpadded, Encoding as _};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::Value;
use weir_config::{NatsSink as SinkConfig, NatsSource as SourceConfig};

use crate::driver::DriverError;
use crate::redis::{secret, secret_within};

/// The port of servers.
const PORT: u16 = 4222;
/// The longest credentials file, in bytes: its JWT lists the permissions of the user.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

/// The addresses and the credentials of a configuration.
pub(super) struct Access<'a> {
    pub(super) url: &'a str,
    pub(super) username: &'a str,
    pub(super) password_file: &'a Path,
    pub(super) token_file: &'a Path,
    pub(super) nkey_file: &'a Path,
    pub(super) credentials_file: &'a Path,
    pub(super) ca_file: &'a Path,
    pub(super) timeout: Duration,
}

/// Implements the conversion for both kinds of configurations, which have the same keys.
macro_rules! access_of {
    ($config:ty) => {
        impl<'a> From<&'a $config> for Access<'a> {
            fn from(config: &'a $config) -> Self {
                Self {
                    url: &config.url,
                    username: &config.username,
                    password_file: &config.password_file,
                    token_file: &config.token_file,
                    nkey_file: &config.nkey_file,
                    credentials_file: &config.credentials_file,
                    ca_file: &config.ca_file,
                    timeout: Duration::from_millis(config.timeout_ms),
                }
            }
        }
    };
}

access_of!(SourceConfig);
access_of!(SinkConfig);

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Access<'_> {
    /// Checks the settings without reading files or connecting.
    ///
    /// # Errors
    ///
    /// A sentence that names the key.
    pub(super) fn check(&self) -> Result<(), String> {
        self.addresses().map_err(|error| error.to_string())?;
        let forms = [
            ("username", !self.username.is_empty()),
            ("token_file", !self.token_file.as_os_str().is_empty()),
            ("nkey_file", !self.nkey_file.as_os_str().is_empty()),
            ("credentials_file", !self.credentials_file.as_os_str().is_empty()),
        ];
        let set: Vec<&str> = forms.iter().filter(|(_, is_set)| *is_set).map(|(key, _)| *key).collect();
        if set.len() > 1 {
            return Err(format!("{} exclude each other; give one of them", set.join(" and ")));
        }
        if !self.password_file.as_os_str().is_empty() && self.username.is_empty() {
            return Err("password_file needs a username; a token is given with token_file".to_owned());
        }
        Ok(())
    }

    /// The servers, in the order in which they are tried.
    pub(super) fn addresses(&self) -> Result<Vec<Address>, DriverError> {
        self.url.split(',').map(|url| address(url.trim()).map_err(DriverError::Config)).collect()
    }

    /// Reads the files with secrets.
    pub(super) fn credentials(&self) -> Result<Credentials, DriverError> {
        self.check().map_err(DriverError::Config)?;
        if !self.username.is_empty() {
            let password = match self.password_file.as_os_str().is_empty() {
                true => String::new(),
                false => secret(self.password_file)?,
            };
            return Ok(Credentials::Password { user: self.username.to_owned(), password });
        }
        if !self.token_file.as_os_str().is_empty() {
            return Ok(Credentials::Token(secret(self.token_file)?));
        }
        let invalid = |path: &Path, reason: &str| DriverError::Config(format!("{}: {reason}", path.display()));
        if !self.nkey_file.as_os_str().is_empty() {
            let text = secret(self.nkey_file)?;
            return Ok(Credentials::Nkey(Nkey::parse(&text).map_err(|reason| invalid(self.nkey_file, reason))?));
        }
        if !self.credentials_file.as_os_str().is_empty() {
            let text = secret_within(self.credentials_file, CREDENTIALS_BYTES_MAX)?;
            return credentials_of(&text).map_err(|reason| invalid(self.credentials_file, reason));
        }
        Ok(Credentials::None)
    }
}

/// The address in a URL. Errors do not repeat it, since it may contain a password.
fn address(url: &str) -> Result<Address, String> {
    let invalid = || "url must be nats://host:port or tls://host:port".to_owned();
    let uri: http::Uri = url.parse().map_err(|_| invalid())?;
    let is_tls = match uri.scheme_str() {
        Some("nats") => false,
        Some("tls") => true,
        _ => return Err(invalid()),
    };
    let authority = uri.authority().ok_or_else(invalid)?;
    if authority.as_str().contains('@') {
        return Err("url has a user; give username and password_file, or token_file".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.host().is_empty() {
        return Err(invalid());
    }
    let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
        None => PORT,
        Some(port) => port.parse().map_err(|_| invalid())?,
    };
    Ok(Address { host: authority.host().trim_matches(['[', ']']).to_owned(), port, is_tls })
}

/// The credentials of a user.
pub(super) enum Credentials {
    None,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    Nkey(Nkey),
    /// The JWT of the user, and the key that it belongs to.
    Jwt(String, Nkey),
}

impl Credentials {
    /// Adds the credentials to the options of CONNECT.
    pub(super) fn add_to(&self, options: &mut Value, nonce: &str) {
        match self {
            Self::None => {}
            Self::Password { user, password } => {
                options["user"] = user.as_str().into();
                options["pass"] = password.as_str().into();
            }
            Self::Token(token) => options["auth_token"] = token.as_str().into(),
            Self::Nkey(key) => {
                options["nkey"] = key.public().into();
                options["sig"] = key.sign(nonce).into();
            }
            Self::Jwt(jwt, key) => {
                options["jwt"] = jwt.as_str().into();
                options["sig"] = key.sign(nonce).into();
            }
        }
    }
}

/// The credentials in a file of `nsc`: a JWT and the seed of an nkey, each below a line that names it.
fn credentials_of(text: &str) -> Result<Credentials, &'static str> {
    let below = |name: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find(|line| line.starts_with("-----BEGIN") && line.contains(name))?;
        lines.find(|line| !line.is_empty())
    };
    let jwt = below("USER JWT").ok_or("it has no `BEGIN NATS USER JWT`")?;
    let seed = below("NKEY SEED").ok_or("it has no `BEGIN USER NKEY SEED`")?;
    Ok(Credentials::Jwt(jwt.to_owned(), Nkey::parse(seed)?))
}

/// The first byte of a seed, and of the public key of a user.
const SEED_PREFIX: u8 = 18 << 3;
const USER_PREFIX: u8 = 20 << 3;

/// The key of a user: Ed25519, with the text form of NATS (base32 of a prefix, the key, and a checksum).
pub(super) struct Nkey(Ed25519KeyPair);

impl Nkey {
    /// Parses a seed, `SU…`.
    fn parse(seed: &str) -> Result<Self, &'static str> {
        let bytes = base32_decode(seed.trim()).ok_or("the seed of an nkey must be in base32")?;
        let (content, checksum) = bytes.split_at_checked(34).ok_or("the seed of an nkey must have 58 characters")?;
        if checksum != crc16(content).to_le_bytes() {
            return Err("the checksum of the nkey is wrong");
        }
        let kind = (content[0] & 7) << 5 | content[1] >> 3;
        if content[0] & !7 != SEED_PREFIX || kind != USER_PREFIX {
            return Err("the nkey must be the seed of a user, `SU…`");
        }
        let key = Ed25519KeyPair::from_seed_unchecked(&content[2..]);
        Ok(Self(key.map_err(|_| "the nkey is not a key of Ed25519")?))
    }

    /// The public key, `U…`.
    fn public(&self) -> String {
        let mut bytes = vec![USER_PREFIX];
        bytes.extend_from_slice(self.0.public_key().as_ref());
        bytes.extend_from_slice(&crc16(&bytes).to_le_bytes());
        base32_encode(&bytes)
    }

    /// The signature of a nonce, in base64url.
    fn sign(&self, nonce: &str) -> String {
        Base64UrlUnpadded::encode_string(self.0.sign(nonce.as_bytes()).as_ref())
    }
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Base32 of RFC 4648 without padding.
fn base32_encode(bytes: &[u8]) -> String {
    let (mut text, mut bits, mut count) = (String::new(), 0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(BASE32[(bits >> count) as usize & 31]));
        }
    }
    if count > 0 {
        text.push(char::from(BASE32[(bits << (5 - count)) as usize & 31]));
    }
    text
}

/// Decodes base32; `None` if the text is not valid.
fn base32_decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for character in text.bytes() {
        let value = BASE32.iter().position(|other| *other == character)?;
        bits = bits << 5 | u32::try_from(value).ok()?;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// CRC-16 of XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SourceConfig {
        SourceConfig::default()
    }

    fn wrong(config: &SourceConfig) -> String {
        Access::from(config).check().unwrap_err()
    }

    #[test]
    fn addresses_are_those_of_the_url() {
        let config = SourceConfig { url: "nats://one:4223, tls://[::1]".into(), ..config() };
        let addresses = Access::from(&config).addresses().unwrap();
        assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["one:4223", "[::1]:4222"]);
        assert_eq!(addresses.iter().map(|address| address.is_tls).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn wrong_urls_are_refused_without_repeating_them() {
        for url in ["", "localhost:4222", "http://h:1", "nats://h:1/path", "nats://h:x", "nats://h,"] {
            assert_eq!(
                wrong(&SourceConfig { url: url.into(), ..config() }),
                "url must be nats://host:port or tls://host:port",
                "{url}"
            );
        }
        let error = wrong(&SourceConfig { url: "nats://user:hunter2@h".into(), ..config() });
        assert_eq!(error, "url has a user; give username and password_file, or token_file");
    }

    #[test]
    fn several_forms_of_credentials_are_refused() {
        let both = SourceConfig { username: "u".into(), token_file: "t".into(), ..config() };
        assert_eq!(wrong(&both), "username and token_file exclude each other; give one of them");
        let without_user = SourceConfig { password_file: "p".into(), ..config() };
        assert_eq!(wrong(&without_user), "password_file needs a username; a token is given with token_file");
    }

    /// The keys of the documentation of nkeys.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    #[test]
    fn nkeys_are_those_of_the_documentation() {
        let key = Nkey::parse(SEED).unwrap();
        assert_eq!(key.public(), PUBLIC);
        let signature = Base64UrlUnpadded::decode_vec(&key.sign("nonce")).unwrap();
        let public = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key.0.public_key());
        public.verify(b"nonce", &signature).unwrap();
    }

    #[test]
    fn bad_seeds_are_refused() {
        let error = |seed: &str| Nkey::parse(seed).err().unwrap();
        assert_eq!(error("SUA1"), "the seed of an nkey must be in base32");
        assert_eq!(error("SUACSSL3"), "the seed of an nkey must have 58 characters");
        assert_eq!(error(&SEED.replace("SUACSSL3", "SUACSSL4")), "the checksum of the nkey is wrong");
        let mut account = base32_decode(SEED).unwrap();
        account[0] = SEED_PREFIX;
        let checksum = crc16(&account[..34]).to_le_bytes();
        account[34..].copy_from_slice(&checksum);
        assert_eq!(error(&base32_encode(&account)), "the nkey must be the seed of a user, `SU…`");
    }

    #[test]
    fn credentials_file_has_a_jwt_and_a_seed() {
        let text = format!(
            "-----BEGIN NATS USER JWT-----\nthe.jwt\n------END NATS USER JWT------\n\nIMPORTANT\n\
             -----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
        );
        let mut options = serde_json::json!({});
        credentials_of(&text).unwrap_or(Credentials::None).add_to(&mut options, "nonce");
        assert_eq!(options["jwt"], "the.jwt");
        assert_eq!(options["sig"], Nkey::parse(SEED).unwrap().sign("nonce"));
        assert_eq!(credentials_of("").err(), Some("it has no `BEGIN NATS USER JWT`"));
    }
}
