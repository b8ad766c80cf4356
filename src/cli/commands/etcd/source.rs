//! Where the source is and who reads there, from flags, variables and URLs.

use crate::cli::args::Import;
use crate::cli::credentials;
use crate::cli::exit::CliError;
use crate::client::Endpoint;
use crate::client::etcd::Login;
use percent_encoding::percent_decode_str;

/// A flag counts before what stands in a URL; the URLs name one user at most.
pub(super) fn named(urls: &[String], args: &Import) -> Result<(Vec<Endpoint>, Login), CliError> {
    let mut endpoints = Vec::with_capacity(urls.len());
    let mut in_url: Option<String> = None;
    for url in urls {
        let (url, user) = apart(url.trim())?;
        endpoints.push(Endpoint::parse(&url)?);
        if let Some(user) = user {
            if in_url.as_ref().is_some_and(|known| *known != user) {
                return Err(CliError::Usage("the URLs of --from-etcd name several users".to_owned()));
            }
            in_url = Some(user);
        }
    }
    let Some(user) = args.etcd_user.as_ref().map(|user| user.0.clone()).or(in_url) else {
        let message = "--etcd-password-file takes an --etcd-user";
        return match args.etcd_password_file {
            Some(_) => Err(CliError::Usage(message.to_owned())),
            None => Ok((endpoints, Login::Nobody)),
        };
    };
    if user.contains(':') && args.etcd_password_file.is_some() {
        return Err(CliError::Usage("--etcd-password-file is given beside a password: say one of them".to_owned()));
    }
    let instead = "--etcd-password-file FILE, or as --etcd-user NAME:PASSWORD";
    let (name, password) = credentials::login(&user, args.etcd_password_file.as_deref(), instead)?;
    Ok((endpoints, Login::Password { name, password }))
}

/// The URL, and `NAME[:PASSWORD]` that stood in it. What belongs to a user never gets into an error.
fn apart(url: &str) -> Result<(String, Option<String>), CliError> {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    // A slash ends what may name a user.
    let authority = rest.split('/').next().unwrap_or(rest);
    let Some((user, host)) = authority.rsplit_once('@') else { return Ok((url.to_owned(), None)) };
    let plain = |part: &str| {
        let decoded = percent_decode_str(part).decode_utf8();
        decoded.map(String::from).map_err(|_| CliError::Usage("a user in --from-etcd is not UTF-8 text".to_owned()))
    };
    let user = match user.split_once(':') {
        Some((name, password)) => {
            let name = plain(name)?;
            if name.contains(':') {
                return Err(CliError::Usage("a user's name has no colon".to_owned()));
            }
            format!("{name}:{}", plain(password)?)
        }
        None => plain(user)?,
    };
    let rest = format!("{host}{}", &rest[authority.len()..]);
    Ok((if scheme.is_empty() { rest } else { format!("{scheme}://{rest}") }, Some(user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_stand_before_the_host() {
        let read = |url: &str| apart(url).unwrap();
        let pair = |url: &str, user: Option<&str>| (url.to_owned(), user.map(str::to_owned));
        assert_eq!(read("http://h:1"), pair("http://h:1", None));
        assert_eq!(read("http://root:p%3Aw%40x@h:1"), pair("http://h:1", Some("root:p:w@x")));
        assert_eq!(read("root:a@b@h:1/"), pair("h:1/", Some("root:a@b")));
        assert_eq!(read("http://root@h"), pair("http://h", Some("root")));
        assert_eq!(read("http://h/@x"), pair("http://h/@x", None));
        for wrong in ["http://a%3Ab:canary@h", "http://root:%ffcanary@h"] {
            assert!(!apart(wrong).unwrap_err().to_string().contains("canary"));
        }
    }
}
