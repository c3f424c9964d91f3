################################################################################
#
# dunlin-agent
#
################################################################################

DUNLIN_AGENT_VERSION = 0.1.0
DUNLIN_AGENT_SITE = $(call qstrip,$(BR2_PACKAGE_DUNLIN_AGENT_FOLDER))
DUNLIN_AGENT_SITE_METHOD = local
DUNLIN_AGENT_LICENSE = MIT or Apache-2.0
DUNLIN_AGENT_LICENSE_FILES = LICENSE-MIT LICENSE-APACHE rootfs/usr/share/doc/dunlin-agent/THIRD-PARTIES

define DUNLIN_AGENT_INSTALL_TARGET_CMDS
	cp -R $(@D)/rootfs/. $(TARGET_DIR)/
endef

define DUNLIN_AGENT_INSTALL_INIT_OPENRC
	$(INSTALL) -D -m 0755 $(@D)/init/openrc/etc/init.d/dunlin-agent \
		$(TARGET_DIR)/etc/init.d/dunlin-agent
	mkdir -p $(TARGET_DIR)/etc/runlevels/default
	ln -sf /etc/init.d/dunlin-agent $(TARGET_DIR)/etc/runlevels/default/dunlin-agent
endef

define DUNLIN_AGENT_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(@D)/init/sysv/etc/init.d/dunlin-agent \
		$(TARGET_DIR)/etc/init.d/S95dunlin-agent
endef

define DUNLIN_AGENT_USERS
	dunlin -1 dunlin -1 * /var/lib/dunlin - - Dunlin agent
endef

define DUNLIN_AGENT_PERMISSIONS
	/var/lib/dunlin d 0700 dunlin dunlin - - - - -
endef

$(eval $(generic-package))
