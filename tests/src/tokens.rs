//! JSON Web Tokens for the tests.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::tool;

/// A JSON Web Token that Python's standard library signs with HMAC-SHA-256, also where `header` names another algorithm.
pub fn token(header: &Value, claims: &Value, secret: &str) -> Result<String> {
    const SIGN: &str = "
import sys, hmac, hashlib, base64
b64 = lambda data: base64.urlsafe_b64encode(data).rstrip(b'=')
signed = b64(sys.argv[1].encode()) + b'.' + b64(sys.argv[2].encode())
print((signed + b'.' + b64(hmac.new(sys.argv[3].encode(), signed, hashlib.sha256).digest())).decode(), end='')
";
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    let output = command.args(["-c", SIGN, &header.to_string(), &claims.to_string(), secret]).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
