// Package imageref gives the one form in which the names of images are kept: "nginx"
// is "docker.io/library/nginx:latest".
//
// It is not what asks registries: it resolves nothing.
package imageref
