//! The names and numbers of network interfaces, as a zone of an IPv6 address needs them.

use std::ffi::{CStr, CString};

/// The index of the interface of that name in this network namespace, if there is one.
pub(crate) fn index_by_name(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call, which only reads it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// The name of the interface of that index in this network namespace, if there is one.
pub(crate) fn name_by_index(index: u32) -> Option<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: `name` has the IF_NAMESIZE bytes that the call may write, and outlives it.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    CStr::from_bytes_until_nul(&name).ok()?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_both_ways() {
        let index = index_by_name("lo").expect("every namespace has a loopback interface");
        assert_eq!(name_by_index(index).as_deref(), Some("lo"));
        assert_eq!(index_by_name("no-such-interface"), None);
        assert_eq!(index_by_name("l\0o"), None);
        assert_eq!(index_by_name(""), None);
        assert_eq!(name_by_index(0), None);
        assert_eq!(name_by_index(u32::MAX), None);
    }
}
