// Package debian gets files out of Debian's packages without installing them: apt-get says where a
// package is and downloads it, its digest is checked, dpkg-deb unpacks it into a directory.
//
// It is not a package manager: nothing below /usr, /etc or /var of the host changes, no maintainer
// script runs, dependencies are not followed. It needs no privileges; as root it downloads as the
// user _apt, as apt itself does.
package debian
