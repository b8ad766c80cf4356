//! Where a member is, as its URLs say it. It must not ask whether anyone is there.

use std::net::Ipv6Addr;

/// `HOST:PORT`: a name or an IPv4 address, or an IPv6 address in brackets, and a port.
pub(super) fn is_host_and_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => {
            let odd = |byte: u8| !byte.is_ascii_alphanumeric() && !matches!(byte, b'-' | b'.' | b'_');
            !host.is_empty() && !host.bytes().any(odd)
        }
    };
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    is_host && is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_and_ports_are_numbers() {
        for good in ["10.0.0.4:2380", "n4:2380", "a_b.example-1.org:1", "[::1]:65535", "[fe80::1:2]:80"] {
            assert!(is_host_and_port(good), "{good}");
        }
        let bad = [
            "", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "a:x", "::1:80", "[a:80", "a]:80", "[zz]:80", "a[]:2",
            "[]:2", "%5Bb]x:1", "u@h:1", "h/p:1", "h p:1", "h?:1", "é:1",
        ];
        for bad in bad {
            assert!(!is_host_and_port(bad), "{bad}");
        }
    }
}
