module github.com/blixard/blixard

go 1.26
