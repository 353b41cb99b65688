//! TLS: the trusted authorities, the client certificate, and what errors about them mean.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use crate::settings::Environment;

use super::variables::{SWITCH, parsed, read_file, warn_if_exposed};

/// The settings of TLS.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    roots: RootCerts,
    /// The files of the client certificate and its key.
    identity: Option<[PathBuf; 2]>,
    skip_verify: bool,
}

const CERT: &str = "VAULT_CLIENT_CERT";
const KEY: &str = "VAULT_CLIENT_KEY";

impl Tls {
    /// Reads the settings, and checks that the files are usable now.
    ///
    /// # Errors
    ///
    /// A text that names what is unusable, without its content.
    pub(super) fn new(environment: &Environment, is_https: bool) -> Result<Self, String> {
        let path = |name| environment.setting(name).map(PathBuf::from);
        let authorities = match environment.setting("VAULT_CACERT_BYTES") {
            Some(pem) => Some(pem.to_owned().into()),
            None => {
                path("VAULT_CACERT").map(|path| read_file("VAULT_CACERT", &path)).transpose()?
            }
        };
        let identity = match (path(CERT), path(KEY)) {
            (Some(chain), Some(key)) => {
                warn_if_exposed(KEY, &key);
                Some([chain, key])
            }
            (None, None) => None,
            _ => return Err(format!("{CERT} and {KEY} go together; set both")),
        };
        let skip_verify = parsed(environment, "VAULT_SKIP_VERIFY", SWITCH, false)?;
        if skip_verify {
            log::warn!(
                "VAULT_SKIP_VERIFY is on: whoever is between can pose as Vault, and read the \
                 token and every value"
            );
        }
        let roots = if skip_verify { Vec::new() } else { roots(authorities, is_https)? };
        let tls = Self { roots: RootCerts::from(for_ureq(&roots)), identity, skip_verify };
        tls.config().map(|_| tls)
    }

    /// The configuration for one new connection, with the client certificate that is in its
    /// files now.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub(super) fn config(&self) -> Result<TlsConfig, String> {
        let identity = self.identity.as_ref().map(|[chain, key]| {
            client_certificate(&read_file(CERT, chain)?, &read_file(KEY, key)?)
        });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .disable_verification(self.skip_verify)
            .root_certs(self.roots.clone())
            .client_cert(identity.transpose()?)
            .build())
    }
}

/// The trusted authorities: those given, else the system's. A server without TLS needs none,
/// unless it redirects to one with TLS.
fn roots(
    authorities: Option<Zeroizing<String>>,
    is_https: bool,
) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    if let Some(pem) = authorities {
        return certificates(&pem)
            .ok_or("the certificates of the authorities are not in PEM (BEGIN CERTIFICATE)");
    }
    let roots = rustls_native_certs::load_native_certs().certs;
    if roots.is_empty() && is_https {
        return Err("the system has no trusted certificates; install its package \
                    (ca-certificates), or set VAULT_CACERT");
    }
    Ok(roots)
}

fn client_certificate(chain: &str, key: &str) -> Result<ClientCert, String> {
    const NO_KEY: &str = "VAULT_CLIENT_KEY is not a key in PEM (BEGIN PRIVATE KEY)";

    let chain = certificates(chain).ok_or("VAULT_CLIENT_CERT is not in PEM (BEGIN CERTIFICATE)")?;
    // ureq panics when certificate and key do not match, so that is checked here.
    let parsed = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| NO_KEY)?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain.clone(), parsed, &provider)
        .map_err(|_| "VAULT_CLIENT_CERT and VAULT_CLIENT_KEY do not belong together")?;
    let key = PrivateKey::from_pem(key.as_bytes()).map_err(|_| NO_KEY)?;
    Ok(ClientCert::new_with_certs(&for_ureq(&chain), key))
}

/// The certificates in the text, or `None` if there are none, or a broken one.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|found| !found.is_empty())
}

fn for_ureq(certificates: &[CertificateDer<'_>]) -> Vec<Certificate<'static>> {
    certificates.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
}

/// Explains an error about certificates, and returns `None` for any other. With such an error,
/// no request has been sent.
pub(super) fn tls_failure(error: &io::Error) -> Option<String> {
    use rustls::{AlertDescription, Error};

    match rustls_error(error)? {
        Error::InvalidCertificate(reason) => Some(format!(
            "its certificate is not accepted ({reason}); is its authority in VAULT_CACERT, and \
             VAULT_ADDR its name?"
        )),
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::UnknownCA,
        ) => Some(
            "it requires another client certificate; set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The TLS error inside an I/O error.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| rustls_error(inner.source()?.downcast_ref()?))
}
